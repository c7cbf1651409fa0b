"""What is made of the runs on disk: comparisons, tables, the evidence page and figures."""
