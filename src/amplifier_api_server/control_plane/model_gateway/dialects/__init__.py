"""One module for each dialect that providers speak."""
