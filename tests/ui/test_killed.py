"""A training process that is killed while the page looks on: the page says so, offers to go on, and the next begins."""

import os
import signal
import time

import pytest

from sdlora import service
from sdlora.events import RunStarted, StepDone
from sdlora.ui.app_state import ACTIVE, AppState
from sdlora.ui.run_panel import RESUMABLE, run_panel_updates
from sdlora.ui.run_view import sentence
from tests.support.run_outcome import model_hash

RESUME = 4
"""The button's place among what the timer brings up to date."""


@pytest.fixture
def desk(tmp_path):
    desk = AppState(tmp_path)
    yield desk
    for run in service.runs_in(tmp_path):
        desk.queue.stop(run)
    _until(desk, lambda: not any(run.held() for run in service.runs_in(tmp_path)))
    desk.close()


def _until(desk, done, seconds=120):
    """Let the page's clock tick until something is so."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        desk.queue.tick()
        time.sleep(0.05)


def _steps(run):
    return [event.step for event in run.events() if isinstance(event, StepDone)]


@pytest.mark.slow
def test_a_killed_training_is_shown_as_cut_off_and_the_next_in_the_queue_begins(desk, configure):
    killed = desk.train(configure(train__steps=20, checkpoint__every=1), "killed")
    waiting = desk.train(configure(train__steps=400), "waiting")
    _until(desk, lambda: len(_steps(killed)) > 1)
    seen = {}
    assert _shown(desk, killed, seen) == ("running", False)
    assert desk.queue.state(waiting) == "queued"
    os.kill(desk.queue._training.process.pid, signal.SIGKILL)
    _until(desk, lambda: desk.queue.state(waiting) == "running")
    assert _shown(desk, killed, seen) == ("interrupted", True)
    assert "Cut off before its end" in sentence(desk.view(killed), "interrupted")
    assert not killed.queued_file.exists()
    desk.queue.stop(waiting)
    desk.start(killed)  # what Resume does
    assert desk.queue.state(killed) == "queued"
    _until(desk, lambda: killed.adapter.exists() and desk.queue.state(killed) not in ACTIVE)
    assert [event.step for event in killed.events() if isinstance(event, RunStarted)][1] > 0
    assert _shown(desk, killed, seen) == ("finished", False)
    assert model_hash(killed.adapter) == model_hash(killed.checkpoint(20))


def _shown(desk, run, seen):
    """The run's state, and whether the page shows the button Resume. A page that has seen it is told of changes."""
    desk.refresh()
    state = desk.queue.state(run)
    resume = run_panel_updates(desk, run.name, seen)[RESUME]
    assert resume["visible"] == (state in RESUMABLE)
    return state, resume["visible"]
