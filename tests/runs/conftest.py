"""What tests with real processes share."""

from collections.abc import Iterator

import pytest

from tests.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts processes in a blink."""
    nursery = Nursery()
    yield nursery
    nursery.close()
