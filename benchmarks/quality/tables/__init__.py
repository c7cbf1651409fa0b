"""Comparisons, tables, the evidence page and figures of the runs on disk."""
