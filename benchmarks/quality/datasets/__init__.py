"""The data sets: how each is read, split and standardised, and what all of them are."""
