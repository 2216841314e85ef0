"""What the command line does once it has parsed its arguments; each module is imported by its own command alone."""
