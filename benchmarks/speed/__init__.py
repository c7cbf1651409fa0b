"""Speed and memory of grf-fusion and its peers, on a CPU for the most part."""
