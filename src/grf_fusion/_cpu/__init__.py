"""What eager mode on the CPU computes faster than PyTorch's own layers do."""
