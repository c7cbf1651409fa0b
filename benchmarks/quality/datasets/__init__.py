"""The data sets: reading, splitting and standardising."""
