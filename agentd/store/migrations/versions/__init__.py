"""One module per schema, named by ascending numbers."""
