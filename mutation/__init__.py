"""How many changes to the source the tests notice: mutation testing, kept file by file."""
