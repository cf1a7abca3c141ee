"""What the page, the command line and Python callers use, by noun."""
