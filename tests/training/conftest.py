"""Fixtures of tests that train in this process."""

import pytest


@pytest.fixture(autouse=True)
def each_fresh(fresh_accelerate: None) -> None:
    """For every test here."""
