"""Speed and memory of grf-fusion and its peers, on a CPU."""
