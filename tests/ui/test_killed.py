"""A training process that is killed while the page looks on: the page says so, offers to go on, and the next begins."""

import os
import signal
import time

import gradio as gr
import pytest

from sdlora.api.training import list_runs
from sdlora.events import RunStarted, StepDone
from sdlora.ui import run_panel
from sdlora.ui.app_state import ACTIVE, AppState
from sdlora.ui.listeners import Changes
from sdlora.ui.run_panel import RESUMABLE
from sdlora.ui.run_view import describe
from tests.support.run_outcome import model_hash


@pytest.fixture
def app(tmp_path):
    app = AppState(tmp_path)
    yield app
    for run in list_runs(tmp_path):
        app.queue.stop(run)
    _until(app, lambda: not any(run.is_locked() for run in list_runs(tmp_path)))
    app.close()


def _until(app, done, seconds=120):
    """Let the page's clock tick until something is so."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        app.queue.tick()
        time.sleep(0.05)


def _steps(run):
    return [event.step for event in run.events() if isinstance(event, StepDone)]


@pytest.mark.slow
def test_a_killed_training_is_shown_as_cut_off_and_the_next_in_the_queue_begins(app, configure):
    killed = app.train(configure(train__steps=20, checkpoint__every=1), "killed")
    waiting = app.train(configure(train__steps=400), "waiting")
    _until(app, lambda: len(_steps(killed)) > 1)
    seen = {}
    with gr.Blocks():
        panel = run_panel.build(app)
    assert _shown(app, panel, killed, seen) == ("running", False)
    assert app.queue.state(waiting) == "queued"
    os.kill(app.queue._training.process.pid, signal.SIGKILL)
    _until(app, lambda: app.queue.state(waiting) == "running")
    assert _shown(app, panel, killed, seen) == ("interrupted", True)
    assert "Cut off before its end" in describe(app.run_view(killed), "interrupted")
    assert not killed.queued_file.exists()
    app.queue.stop(waiting)
    app.start(killed)  # what Resume does
    assert app.queue.state(killed) == "queued"
    _until(app, lambda: killed.adapter.exists() and app.queue.state(killed) not in ACTIVE)
    assert [event.step for event in killed.events() if isinstance(event, RunStarted)][1] > 0
    assert _shown(app, panel, killed, seen) == ("finished", False)
    assert model_hash(killed.adapter) == model_hash(killed.checkpoint(20))


def _shown(app, panel, run, seen):
    """The run's state, and whether the page shows the button Resume. A page that has seen it is told of changes."""
    app.refresh()
    state = app.queue.state(run)
    changes = Changes(seen)
    run_panel.refresh(app, panel, run.name, changes)
    seen.update(changes.seen)
    resume = changes.updates[panel.resume]
    assert resume["visible"] == (state in RESUMABLE)
    return state, resume["visible"]
