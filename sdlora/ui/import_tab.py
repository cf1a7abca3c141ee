"""What comes into the library from outside: import with a self-test."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.adapter_jobs import import_adapters
from sdlora.errors import SdloraError
from sdlora.ui import library_html, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN

ALONE = "no base: check the file alone"
SAVE_FILE = "() => setTimeout(() => document.querySelector('#library-file')?.click(), 100)"
"""Clicks the hidden button that holds the prepared file."""


def build_import(app: AppState, tab: gr.Tab) -> Any:
    """The drop zone and its report; returns the event after which the lists are to be read anew."""
    base = gr.Dropdown(
        [*app.base_choices(), ALONE], value=app.base_choices()[0][1], label="Check against",
        info="the base model that you want to use it with", allow_custom_value=True, elem_id="import-base",
    )  # fmt: skip
    drop = gr.File(file_count="multiple", label="Adapter files (.safetensors)", height=150, elem_id="import-files")
    report = gr.HTML(elem_id="import-report")
    tab.select(lambda: gr.update(choices=[*app.base_choices(), ALONE]), None, base, **HIDDEN)
    return drop.upload(partial(_take_in, app), [drop, base], [drop, report], **HIDDEN)


def _take_in(app: AppState, files: Any, base: str) -> Iterator[list[Any]]:
    """Check what was dropped, file by file, and keep what is fine; the field is then free for more."""
    paths, taken = [Path(file) for file in files or ()], []
    yield [gr.skip(), page_html.progress_note(f"Checking {paths[0].name if paths else 'nothing'}", None)]
    try:
        for one in import_adapters(app.library, paths, "" if base == ALONE else base or ""):
            taken.append(one)
            left = len(paths) - len(taken)
            busy = (
                page_html.progress_note(f"Checking {paths[len(taken)].name}", len(taken) / len(paths)) if left else ""
            )
            yield [gr.skip(), library_html.import_report(taken) + busy]
        app.refresh()
        yield [None, gr.skip()]
    except SdloraError as error:
        yield [None, library_html.import_report(taken) + page_html.note([str(error)], "bad")]
