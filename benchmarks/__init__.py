"""Measurements: a command each, both sides in one run, the machine named. See README.md."""
