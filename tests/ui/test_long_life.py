"""A page that is open for hours: what it holds does not grow."""

import importlib
import os
import pkgutil
import time
from pathlib import Path

import pytest

import sdlora
from sdlora.api.generation import GenerationRequest
from sdlora.api.training import prepare_run
from sdlora.events import RunStarted, StepDone
from sdlora.filesystem.stat_cache import StatCache
from sdlora.inference import inference_client
from sdlora.storage import gallery
from sdlora.storage.journal import Journal
from sdlora.ui import app_state
from sdlora.ui.app_state import AppState
from sdlora.ui.page import _refresh
from tests.support.memory_checks import assert_flat, resources_in_use
from tests.support.page_calls import build_page
from tests.support.tiny_models import write_tiny_adapter as adapter

POLL_SECONDS = 2
"""Between two looks of a visitor, as the page's timer has them at most."""


def watched(configure, data_dir, monkeypatch, hours):
    """Look at a run as a visitor's page does, by a clock that jumps from one look to the next; what was held after a
    third of the looks, when every cache is warm, and at the end.
    """
    now = time.monotonic()
    monkeypatch.setattr(app_state.time, "monotonic", lambda: now)
    for name in ("old", "older"):
        adapter(prepare_run(configure(), name, data_dir).adapter)
    run = prepare_run(configure(), "mystyle", data_dir)
    looks = round(hours * 3600 / POLL_SECONDS)
    journal, app, seen = Journal(run.journal), AppState(data_dir, "cpu"), {}
    journal(
        RunStarted(
            step=0, steps=looks, device="cpu", precision="fp32", base="b", images=6, modules=4, parameters=9, share=0.1
        )
    )
    page, marks = build_page(app), []
    for number in range(looks):
        now += POLL_SECONDS
        if number % 10 == 0:  # A step a while, as on a slow machine.
            journal(StepDone(step=number + 1, steps=looks, loss=1.0, learning_rate=1e-3, seconds=1.0, left=9.0))
        shown = page.train.run.run
        values = {shown: "mystyle", page.create.adapters[0]: None, page.seen: seen}
        seen = _refresh(app, page, shown, values)[page.seen]
        if number + 1 in (looks // 3, looks):
            marks.append(resources_in_use())
    app.close()
    journal.close()
    assert app.run_view(run).step == looks - 9
    return marks


@pytest.mark.skipif(os.name == "nt", reason="counts open files as POSIX does")
def test_half_an_hour_of_looks_leaves_memory_and_open_files_flat(configure, tmp_path, monkeypatch):
    assert_flat(*watched(configure, tmp_path / "data", monkeypatch, hours=0.5))


@pytest.mark.slow
def test_six_hours_of_looks_leave_memory_and_open_files_flat(configure, tmp_path, monkeypatch):
    assert_flat(*watched(configure, tmp_path / "data", monkeypatch, hours=6))


def test_no_cache_of_the_package_is_without_a_bound():
    """But for those of functions without parameters, which hold one value."""
    caches, bounded = {}, 0
    for module in pkgutil.walk_packages(sdlora.__path__, "sdlora."):
        for name, value in vars(importlib.import_module(module.name)).items():
            members = {
                name: value,
                **({f"{name}.{n}": v for n, v in vars(value).items()} if isinstance(value, type) else {}),
            }
            caches |= {f"{module.name}.{n}": v for n, v in members.items() if hasattr(v, "cache_parameters")}
            bounded += isinstance(value, StatCache)  # Each keeps MOST values: tests/storage/test_many_runs.py.
    unbounded = [
        name
        for name, cache in caches.items()
        if cache.cache_parameters()["maxsize"] is None and cache.__wrapped__.__code__.co_argcount
    ]
    assert len(caches) + bounded > 10 and unbounded == []


def test_the_drawing_processs_log_is_begun_anew_when_it_is_long(tmp_path, monkeypatch):
    monkeypatch.setattr(
        inference_client, "spawn_python", lambda command, **files: (_ for _ in ()).throw(OSError("not here"))
    )
    log: Path = gallery.images_folder(tmp_path) / "process.log"
    log.parent.mkdir(parents=True)
    for size, left in ((inference_client.LOG_BYTES, inference_client.LOG_BYTES), (inference_client.LOG_BYTES + 1, 0)):
        log.write_bytes(b"x" * size)
        with pytest.raises(OSError, match="not here"):
            inference_client.InferenceClient(tmp_path, "cpu").submit(GenerationRequest(prompt="a house"))
        assert log.stat().st_size == left
