"""Alias of ``sdlora.jobs.training_worker``: the module that launch commands written for version 0.1.0 name."""

import sys

from sdlora.jobs.training_worker import main

if __name__ == "__main__":
    sys.exit(main())
