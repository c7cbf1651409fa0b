"""What several benchmarks share: clocks, peers, tables in Markdown and figures."""
