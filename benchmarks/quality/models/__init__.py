"""The model around every fusion, fusions that the library does not have, and classical ones."""
