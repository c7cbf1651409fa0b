"""What comes in: a call, its masks and positions, and what projects the features."""
