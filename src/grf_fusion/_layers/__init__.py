"""Attention, decoder layers, the block and the gate."""
