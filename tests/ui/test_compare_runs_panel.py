"""Comparing runs in the Library, without a browser."""

import shutil

import gradio as gr
import pytest

from sdlora.api.reports import ComparedRuns
from sdlora.ui import compare_runs_panel
from tests.support.recorded_runs import plain_config, recorded_run, step_done


@pytest.fixture
def panel(app):
    with gr.Blocks(), gr.Tab("Library") as tab:
        return compare_runs_panel.build(app, [tab.select])


@pytest.fixture
def runs(app, tmp_path):
    """Two runs that differ in their rank."""
    folder = app.data_dir / "runs"
    found = [recorded_run(folder, f"rank-{n}", plain_config(tmp_path / "own", adapter__rank=n)) for n in (4, 8)]
    app.refresh()
    return found


def compare(app, panel, *names):
    """Return the last values of the panel."""
    return [*compare_runs_panel.compare(app, panel, ComparedRuns(), list(names))][-1]


def test_runs_are_shown_side_by_side_and_can_be_downloaded(app, panel, runs):
    values = compare(app, panel, "rank-4", "rank-8")
    assert "adapter.<wbr>rank" in values[panel.shown] and values[panel.shown].count("role='img'") == 4
    with open(values[panel.download]["value"], encoding="utf-8") as file:
        assert file.read().startswith("<!doctype html>")
    assert values[panel.download]["visible"] and values[panel.go]["interactive"]


@pytest.mark.parametrize(
    ("names", "message"), [((), "Choose the runs"), (("gone",), "gone"), (("x",) * 51, "51 runs are too many")]
)
def test_what_cannot_be_compared_is_told(app, panel, runs, names, message):
    values = compare(app, panel, *names)
    assert message in values[panel.shown] and values[panel.download]["visible"] is False
    assert values[panel.go]["interactive"]


def test_the_choice_changes_only_if_a_run_is_gone(app, runs):
    updates = compare_runs_panel._choices(app, ["rank-4"])
    assert sorted(updates["choices"]) == ["rank-4", "rank-8"] and "value" not in updates
    assert compare_runs_panel._choices(app, ["rank-4", "gone"])["value"] == ["rank-4"]


def test_a_run_that_was_copied_into_the_folder_is_listed_at_once(app, runs, tmp_path):
    app.refresh()
    app._valid_until = float("inf")  # As in a large folder that was just looked at.
    shutil.copytree(runs[0].folder, runs[0].folder.with_name("twin"))
    assert "twin" in compare_runs_panel._choices(app, [])["choices"]


def test_a_run_that_goes_on_is_read_on(runs):
    compared = ComparedRuns()
    assert compared.compare(runs).runs[0].figures["steps"] == 4
    with open(runs[0].journal, "a") as journal:
        journal.write(step_done(5, 5).to_json() + "\n")
    assert compared.compare(runs).runs[0].figures["steps"] == 5
