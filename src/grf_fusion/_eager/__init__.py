"""Faster implementations for eager mode: layers on the CPU, and padded batches on any device."""
