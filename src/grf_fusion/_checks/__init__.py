"""Checks of arguments and options, and of what PyTorch is doing; nothing of ours is imported."""
