"""Inputs of a fusion: checks of a call, masks, positions, projections, and `collate`."""
