"""The tab Disk: what there is, chosen by name, and gone when it is asked for twice."""

import os
import time

import gradio as gr
import pytest

from sdlora.filesystem.locks import hold_lock
from sdlora.storage.disk_usage import FREED
from sdlora.ui import disk_tab
from sdlora.ui.app_state import AppState


@pytest.fixture
def app(tmp_path):
    app = AppState(tmp_path / "data", "cpu")
    for name, days in (("old", 40), ("new", 0)):
        path = app.data_dir / "cache" / "latents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 2000)
        os.utime(path, (time.time() - days * 86_400,) * 2)
    yield app
    app.close()


@pytest.fixture
def tab():
    with gr.Blocks():
        return disk_tab.DiskTab(gr.HTML(), gr.CheckboxGroup(), gr.Button(), gr.Row(), gr.HTML())


@pytest.mark.parametrize(("days", "size"), [(0, "3.91 KiB"), (30, "1.95 KiB"), (365, "0 B")])
def test_the_tab_shows_all_that_there_is_and_offers_what_is_that_old(app, tab, days, size):
    updates = disk_tab._show(app, tab, days)
    usage, chosen = updates[tab.usage], updates[tab.chosen]
    free, sure = updates[tab.free], updates[tab.confirm]
    assert "3.91 KiB: latents, text outputs" in usage and "finished ones, and those imported" in usage
    assert [value for _, value in chosen["choices"]] == list(FREED) and chosen["choices"][0][0] == f"cache ({size})"
    assert chosen["value"] == [] and free["interactive"] is False and sure["visible"] is False


def test_what_is_chosen_goes_and_is_told(app, tab):
    updates = disk_tab._free(app, tab, ["cache"], 30)
    text, usage = updates[tab.message], updates[tab.usage]
    assert "1.95 KiB freed." in text and "1.95 KiB: latents" in usage
    assert [path.name for path in (app.data_dir / "cache" / "latents").iterdir()] == ["new"]


def test_nothing_goes_that_is_not_offered(app, tab):
    text = disk_tab._free(app, tab, ["adapters", "projects"], 0)[tab.message]
    assert "0 B freed." in text and len(list((app.data_dir / "cache" / "latents").iterdir())) == 2


def test_a_busy_cache_is_told(app, tab):
    with hold_lock(app.data_dir / "locks" / "cuda-card.lock", "the device"):
        text = disk_tab._free(app, tab, ["cache"], 0)[tab.message]
    assert "free them when none runs" in text
