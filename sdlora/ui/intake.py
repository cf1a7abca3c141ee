"""What comes into the library, and models made of it: import with a self-test, and merging."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import service
from sdlora.errors import SdloraError
from sdlora.generation.images import SAID_OF_BASE
from sdlora.runs.library import Entry
from sdlora.ui import markup, shelf
from sdlora.ui.desk import Desk, cached
from sdlora.ui.inputs import said_of_base
from sdlora.ui.wiring import HIDDEN, PRIVATE

ROWS = 3
"""Adapters in one merged model."""
ALONE = "no base: check the file alone"
SAVE_FILE = "() => setTimeout(() => document.querySelector('#library-file')?.click(), 100)"
"""Clicks the hidden button that holds the prepared file."""


def build_import(desk: Desk, tab: gr.Tab) -> Any:
    """The drop zone and its report; returns the event after which the lists are to be read anew."""
    base = gr.Dropdown(
        [*desk.bases(), ALONE], value=desk.bases()[0][1], label="Check against",
        info="the base model that you want to use it with", allow_custom_value=True, elem_id="import-base",
    )  # fmt: skip
    drop = gr.File(file_count="multiple", label="Adapter files (.safetensors)", height=150, elem_id="import-files")
    report = gr.HTML(elem_id="import-report")
    tab.select(lambda: gr.update(choices=[*desk.bases(), ALONE]), None, base, **HIDDEN)
    return drop.upload(partial(_take_in, desk), [drop, base], [drop, report], **HIDDEN)


def build_merge(desk: Desk, tab: gr.Tab, file: gr.DownloadButton) -> None:
    """A base, adapters with their scales, and the model made of them behind the hidden button ``file``."""
    gr.HTML(markup.note(["A base model with adapters folded into its weights, as a zipped diffusers folder."]))
    base = gr.Dropdown(desk.bases(), label="Base model", allow_custom_value=True, elem_id="merge-base")
    rows, scales = [], []
    for number in range(1, ROWS + 1):
        with gr.Row(elem_classes="adapter"):
            named: dict[str, Any] = {"label": f"Merge adapter {number}", "elem_id": f"merge-{number}", "scale": 2}
            rows.append(gr.Dropdown([("none", "")], value="", allow_custom_value=True, **named))
            scales.append(gr.Slider(-2, 2, 1.0, step=0.05, label=f"Merge scale {number}", scale=3, min_width=140))
    said = said_of_base("merge")
    dtype = gr.Radio(["fp16", "fp32"], value="fp16", label="Numbers", info="fp16 is half the size")
    button = gr.Button("Merge and download", variant="primary", elem_id="merge-button")
    status = gr.HTML(elem_id="merge-status")
    tab.select(desk.offer, None, base, **HIDDEN)
    tab.select(partial(_choices, desk), None, rows, **HIDDEN)
    rows[0].select(partial(_base_of, desk), [rows[0], base], [base, *said], **HIDDEN)
    base.select(lambda: ["auto"] * len(said), None, said, **HIDDEN)
    button.click(partial(_merged, desk), [base, dtype, *said, *rows, *scales], [file, status], **HIDDEN).success(
        None, js=SAVE_FILE, **PRIVATE
    )


def _take_in(desk: Desk, files: Any, base: str) -> Iterator[list[Any]]:
    """Check what was dropped, file by file, and keep what is fine; the field is then free for more."""
    paths, taken = [Path(file) for file in files or ()], []
    yield [gr.skip(), markup.drawing(f"Checking {paths[0].name if paths else 'nothing'}", None)]
    try:
        for one in desk.library.take_in(paths, "" if base == ALONE else base or ""):
            taken.append(one)
            left = len(paths) - len(taken)
            busy = markup.drawing(f"Checking {paths[len(taken)].name}", len(taken) / len(paths)) if left else ""
            yield [gr.skip(), shelf.report(taken) + busy]
        desk.refresh()
        yield [None, gr.skip()]
    except SdloraError as error:
        yield [None, shelf.report(taken) + markup.note([str(error)], "bad")]


def _choices(desk: Desk) -> list[Any]:
    """The adapters that can be merged."""
    names = [entry.name for entry in desk.library.adapters() if not entry.problem]
    return [gr.update(choices=[("none", ""), *((name, name) for name in names)]) for _ in range(ROWS)]


def _base_of(desk: Desk, name: str, before: str) -> list[Any]:
    """An adapter brings the base that it was trained on; what was said of another base is no more."""
    entries: dict[str, Entry] = {entry.name: entry for entry in desk.library.adapters()}
    base = entries[name].base if name in entries else ""
    return [base, *["auto"] * len(SAID_OF_BASE)] if base and base != before else [gr.skip()] * (1 + len(SAID_OF_BASE))


def _merged(desk: Desk, base: str, dtype: str, *values: Any) -> Iterator[list[Any]]:
    """Merge, telling what is being done; then the zip file lies behind the hidden button."""
    said = {name: value for name, value in zip(SAID_OF_BASE, values, strict=False) if value != "auto"}
    rows = values[len(SAID_OF_BASE) :]
    chosen = [(name, float(scale)) for name, scale in zip(rows[:ROWS], rows[ROWS:], strict=True) if name]
    folder = Path(tempfile.mkdtemp(prefix="sdlora-merge-"))
    try:
        files = [(name, desk.library.file(name), scale) for name, scale in chosen]
        said = {**service.said_of_base((path for _, path, _ in files), base or ""), **said}
        called = "-".join([Path(base or "base").stem, *(name for name, _, _ in files)])[:80]
        errand = service.baking(base or "", files, folder / f"{called}.zip", dtype, said)
        for stage in errand:
            yield [gr.skip(), markup.drawing(stage.phase.capitalize(), None)]
        notes = errand.notes
        done = markup.note(["The merged model is ready; it is being saved.", *notes], "info" if notes else "good")
        yield [cached(folder / f"{called}.zip"), done]
    except SdloraError as error:
        yield [gr.skip(), markup.note([str(error)], "bad")]
        raise gr.Error(str(error), print_exception=False) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
