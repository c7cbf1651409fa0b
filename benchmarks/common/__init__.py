"""Code shared by the benchmarks: clocks, peers, Markdown tables and figures."""
