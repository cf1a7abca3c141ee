"""Runs as folders alone."""

from functools import partial

import pytest

from tests.support.recorded_runs import Record, plain_config, recorded_run


@pytest.fixture
def configure(tmp_path):
    """A config for which nothing is loaded; dotted settings override."""
    return partial(plain_config, tmp_path / "pictures")


@pytest.fixture
def record(configure, tmp_path) -> Record:
    """Make a finished run by its name, with settings that override (``adapter__rank=8``)."""

    def make(name, steps=4, prompt="sks, a cat", **settings):
        return recorded_run(tmp_path / "runs", name, configure(**settings), steps, prompt)

    return make
