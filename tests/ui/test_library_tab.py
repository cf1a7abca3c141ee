"""The tab Library, without a browser: what its lists show, and what its buttons do."""

import gradio as gr
import pytest

from sdlora import service
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.storage.library import ImportResult
from sdlora.ui import adapter_detail, library_html, library_tab
from sdlora.ui.app_state import AppState
from tests.support.tiny_models import write_tiny_adapter as adapter


@pytest.fixture
def desk(tmp_path):
    desk = AppState(tmp_path)
    yield desk
    desk.close()


def lists(desk, search=""):
    return library_tab._lists(desk, search)


def test_an_empty_library_says_what_to_do(desk):
    adapters, runs, trash, empty = lists(desk)
    assert "train one, or import a file" in adapters
    assert "press Train" in runs
    assert "The trash is empty" in trash
    assert empty["interactive"] is False


def test_what_strangers_wrote_is_shown_as_text(desk):
    evil = "<img src=x onerror=alert(1)>'\""
    adapter(desk.library.folder / "x.safetensors", **{"modelspec.trigger_phrase": evil, "ss_sd_model_name": evil})
    (desk.library.folder / "<b>'x.safetensors").write_bytes(b"junk")
    opened = [
        text for entry in desk.library.adapters() for text in map(str, adapter_detail.show_adapter(desk, entry.name))
    ]
    refused = AdapterCheck(evil, (("Base", evil),), evil, 2, 1, (evil,), 1, (evil,), evil)
    pages = [
        lists(desk)[0],
        *opened,
        library_html.report([ImportResult(evil, "", refused)]),
        library_html.inspection(refused),
    ]
    pages.append(library_html.inspection(AdapterCheck(said=evil)))
    assert not any("<img src=x" in page or "<b>'x" in page for page in pages)


def test_of_many_adapters_the_first_are_shown_and_the_search_finds_the_others(desk):
    first = adapter(desk.library.folder / "adapter-000.safetensors")
    for number in range(1, 300):
        (desk.library.folder / f"adapter-{number:03}.safetensors").write_bytes(first.read_bytes())
    shown = lists(desk)[0]
    assert shown.count("class='tile'") == library_html.SHOWN
    assert "The first 60 of 300 adapters are shown" in shown
    assert lists(desk, "adapter-123")[0].count("class='tile'") == 1


def test_deleting_takes_two_clicks_and_comes_back(desk):
    adapter(desk.library.folder / "mine.safetensors")
    asked = library_tab._ask_adapter("mine", "")
    assert (asked[1]["value"], asked[1]["visible"]) == ("Really delete mine?", True)
    assert [entry.name for entry in desk.library.adapters()] == ["mine"]
    deleted = library_tab._delete(desk, asked[4])
    assert desk.library.adapters() == []
    assert "Empty trash (1, " in lists(desk)[3]["value"]
    assert "is back" in library_tab._undo(desk, deleted[5])[0]
    assert [entry.name for entry in desk.library.adapters()] == ["mine"]
    assert "not in the trash" in library_tab._undo(desk, deleted[5])[0]


def test_runs_can_be_opened_and_duplicated(desk, configure):
    service.prepare_run(configure(), "mine", desk.data_dir)
    opened = library_tab._act(desk, "open", "mine")
    assert (opened[0], isinstance(opened[1], gr.Tabs)) == ("mine", True)
    assert library_tab._act(desk, "duplicate", "mine")[0] == "mine-2"
    assert {"mine", "mine-2"} == {run.name for run in service.runs_in(desk.data_dir)}
    assert "no such run" in library_tab._act(desk, "open", "gone")[2]
    assert library_tab._act(desk, "delete", "mine")[3]["value"] == "Really delete mine?"


def test_a_run_with_a_damaged_config_does_not_break_the_list(desk, configure):
    run = service.prepare_run(configure(), "bad", desk.data_dir)
    service.prepare_run(configure(), "good", desk.data_dir)
    run.config_file.write_text("[train\n")
    runs = lists(desk)[1]
    assert "is not TOML" in runs and "good" in runs
