"""What is used in training alone."""
