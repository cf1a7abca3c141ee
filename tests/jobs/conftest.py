"""A queue, and runs that wait in it."""

import pytest

from sdlora.api.training import TrainingQueue, prepare_run


@pytest.fixture
def queue(tmp_path):
    return TrainingQueue(tmp_path)


@pytest.fixture
def waiting(configure, tmp_path, queue):
    """Four runs that wait, by name."""
    runs = {name: prepare_run(configure(), name, tmp_path) for name in "abcd"}
    for run in runs.values():
        queue.add(run)
    return runs
