"""Training steps and forward passes of grf-fusion and its peers on a GPU."""
