"""Tools for training."""
