"""Functions that the page, the command line and Python callers call, by noun."""
