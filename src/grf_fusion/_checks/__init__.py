"""Checks of arguments, of options and of the mode that PyTorch runs in. Imports no other folder."""
