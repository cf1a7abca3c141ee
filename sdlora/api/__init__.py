"""Functions that the page, the command line and Python callers call, by noun.

A name that a module here imports as itself (``Run as Run``) is part of its API; front ends import from nowhere deeper.
"""
