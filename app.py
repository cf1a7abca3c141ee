"""The page of sdlora: ``python app.py``, then http://127.0.0.1:7860."""

import sys

from sdlora.ui.serve import main

if __name__ == "__main__":
    sys.exit(main())
