"""The tab Library, without a browser: what its lists show, and what its buttons do."""

import gradio as gr
import pytest

from sdlora.api.training import list_runs, prepare_run
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.storage.library import ImportResult
from sdlora.ui import adapter_detail, library_html, library_tab
from sdlora.ui.listeners import Changes
from tests.support.page_calls import build_library_tab
from tests.support.tiny_models import write_tiny_adapter as adapter


@pytest.fixture
def built(app):
    """The tab, and the page's tabs that it may switch."""
    return build_library_tab(app)


@pytest.fixture
def detail(app):
    with gr.Blocks():
        return adapter_detail.build_detail(app)


def lists(app, search=""):
    return library_tab._lists(app, search)


def test_an_empty_library_says_what_to_do(app):
    adapters, runs, trash, empty = lists(app)
    assert "train one, or import a file" in adapters
    assert "press Train" in runs
    assert "The trash is empty" in trash
    assert empty["interactive"] is False


def test_what_strangers_wrote_is_shown_as_text(app, detail):
    evil = "<img src=x onerror=alert(1)>'\""
    adapter(app.library.folder / "x.safetensors", **{"modelspec.trigger_phrase": evil, "ss_sd_model_name": evil})
    (app.library.folder / "<b>'x.safetensors").write_bytes(b"junk")
    opened = [
        text
        for entry in app.library.adapters()
        for text in map(str, adapter_detail.show_adapter(app, detail, entry.name).values())
    ]
    refused = AdapterCheck(evil, (("Base", evil),), evil, 2, 1, (evil,), 1, (evil,), evil)
    pages = [
        lists(app)[0],
        *opened,
        library_html.import_report([ImportResult(evil, "", refused)]),
        library_html.inspection(refused),
    ]
    pages.append(library_html.inspection(AdapterCheck(said=evil)))
    assert not any("<img src=x" in page or "<b>'x" in page for page in pages)


def test_lists_that_are_shown_are_read_again_when_there_is_a_new_run_or_adapter(app, built, configure):
    library, _ = built

    def news(seen):
        changes = Changes(seen)
        app.refresh()
        library_tab.refresh(app, library, changes)
        return changes

    seen = news({}).seen
    assert library.news not in news(seen).updates
    adapter(app.library.folder / "copied.safetensors")
    changed = news(seen)
    assert library.news in changed.updates
    prepare_run(configure(), "mine", app.data_dir)
    assert library.news in news(changed.seen).updates


def test_of_many_adapters_the_first_are_shown_and_the_search_finds_the_others(app):
    first = adapter(app.library.folder / "adapter-000.safetensors")
    for number in range(1, 300):
        (app.library.folder / f"adapter-{number:03}.safetensors").write_bytes(first.read_bytes())
    shown = lists(app)[0]
    assert shown.count("class='tile'") == library_html.SHOWN
    assert "The first 60 of 300 adapters are shown" in shown
    assert lists(app, "adapter-123")[0].count("class='tile'") == 1


def test_deleting_takes_two_clicks_and_comes_back(app, built, detail):
    library, _ = built
    adapter(app.library.folder / "mine.safetensors")
    answer = library_tab._ask_adapter(library, "mine", "")
    assert (answer[library.really]["value"], answer[library.really]["visible"]) == ("Really delete mine?", True)
    assert [entry.name for entry in app.library.adapters()] == ["mine"]
    deleted = library_tab._delete(app, library, detail, answer[library.pending])[library.deleted]
    assert app.library.adapters() == []
    assert "Empty trash (1, " in lists(app)[3]["value"]
    assert "is back" in library_tab._undo(app, library, deleted)[library.message]
    assert [entry.name for entry in app.library.adapters()] == ["mine"]
    assert "not in the trash" in library_tab._undo(app, library, deleted)[library.message]


def test_runs_can_be_opened_and_duplicated(app, built, configure):
    library, tabs = built
    prepare_run(configure(), "mine", app.data_dir)
    opened = library_tab._act(app, library, tabs, "open", "mine")
    assert (opened[library.opened], isinstance(opened[tabs], gr.Tabs)) == ("mine", True)
    assert library_tab._act(app, library, tabs, "duplicate", "mine")[library.opened] == "mine-2"
    assert {"mine", "mine-2"} == {run.name for run in list_runs(app.data_dir)}
    assert "no such run" in library_tab._act(app, library, tabs, "open", "gone")[library.message]
    assert library_tab._act(app, library, tabs, "delete", "mine")[library.really]["value"] == "Really delete mine?"


def test_a_run_with_a_damaged_config_does_not_break_the_list(app, configure):
    run = prepare_run(configure(), "bad", app.data_dir)
    prepare_run(configure(), "good", app.data_dir)
    run.config_file.write_text("[train\n")
    runs = lists(app)[1]
    assert "is not TOML" in runs and "good" in runs
