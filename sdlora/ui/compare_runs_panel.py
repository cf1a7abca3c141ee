"""Runs side by side in the Library: tables, curves, and a report to download."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.reports import ComparedRuns, comparison_html, report_html
from sdlora.errors import ConfigError, SdloraError
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.listeners import EVERY, HIDDEN, Trigger, Values

MOST_COMPARED = 50
"""Runs that a visitor may compare at once."""
FILE_NAME = "comparison.html"


@dataclass(frozen=True)
class CompareRunsPanel:
    """Components of the panel."""

    names: gr.Dropdown
    go: gr.Button
    shown: gr.HTML
    download: gr.DownloadButton


def build(app: AppState, changes: Sequence[Trigger]) -> CompareRunsPanel:
    """Lay the panel out; its list of runs is read at each of ``changes``, and when the panel is opened."""
    with gr.Accordion("Compare runs", open=False, elem_id="compare-runs") as fold:
        names = gr.Dropdown(
            [], multiselect=True, label="Runs", max_choices=MOST_COMPARED, elem_id="compare-runs-names",
            info="Choose two or more: settings that differ, figures and curves are shown side by side",
        )  # fmt: skip
        with gr.Row():
            go = gr.Button("Compare", variant="primary", elem_id="compare-runs-button")
            download = gr.DownloadButton("Download the report", visible=False, elem_id="compare-runs-file")
        shown = gr.HTML(elem_id="compare-runs-report")
    panel = CompareRunsPanel(names, go, shown, download)
    gr.on([*changes, fold.expand], partial(_choices, app), names, names, **EVERY)
    go.click(partial(compare, app, panel, ComparedRuns()), names, [shown, download, go], **HIDDEN)
    return panel


def _choices(app: AppState, chosen: list[str] | None) -> Any:
    """List the runs, newest first. The choice changes only if some of it are gone: meanwhile more may be chosen."""
    runs = app.refresh().runs  # What was copied into the folder may be younger than the snapshot.
    there = [name for name in chosen or () if name in runs]
    if there == (chosen or []):
        return gr.update(choices=list(runs))
    return gr.update(choices=list(runs), value=there)


def compare(
    app: AppState, panel: CompareRunsPanel, compared: ComparedRuns, names: list[str] | None
) -> Iterator[Values]:
    """Show the runs called ``names`` side by side, with a file to download."""
    hidden, free = gr.update(visible=False), gr.update(interactive=True)
    try:
        if not names:
            raise ConfigError("Choose the runs to compare.")
        if len(names) > MOST_COMPARED:
            raise ConfigError(f"{len(names)} runs are too many for one page; choose up to {MOST_COMPARED}.")
        runs = [app.library.run(name) for name in names]
        reading = page_html.progress_note("Reading the runs", None)
        yield {panel.shown: reading, panel.download: hidden, panel.go: gr.update(interactive=False)}
        comparison = compared.compare(runs)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, FILE_NAME)
            file.write_text(report_html(comparison), encoding="utf-8")
            report = cache_file(file)
    except SdloraError as error:
        yield {panel.shown: page_html.note([str(error)], "bad"), panel.download: hidden, panel.go: free}
        return
    yield {
        panel.shown: comparison_html(comparison),
        panel.download: gr.update(value=report, visible=True),
        panel.go: free,
    }
