"""What tests with real processes share."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.fork_server import Nursery


@pytest.fixture(scope="session")
def nursery() -> "Iterator[Nursery]":
    """Starts processes in a blink."""
    if os.name == "nt":
        pytest.skip("Windows has no fork, no kill -9 and no limits")
    from tests.support.fork_server import Nursery

    nursery = Nursery()
    yield nursery
    nursery.close()
