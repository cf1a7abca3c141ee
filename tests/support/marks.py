"""Marks that several test files share."""

import importlib.util

import pytest

SLOW = pytest.mark.slow
NEEDS_LIBRARY = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes")
