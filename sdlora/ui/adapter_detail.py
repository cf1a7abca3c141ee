"""One adapter of the library, opened: what is in it, taken away in any format."""

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.adapter_jobs import inspect_adapter, inspect_layers_job, needs_base
from sdlora.api.adapters import export_to_temporary
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError, SdloraError
from sdlora.ui import job_widget, library_html, page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.import_tab import SAVE_FILE
from sdlora.ui.listeners import HIDDEN, PRIVATE
from sdlora.ui.tools_panel import TYPES

FORMATS = [("A1111, ComfyUI, kohya", "kohya"), ("diffusers", "diffusers"), ("PEFT (zip)", "peft")]
FINISHED = ("the newest", "")


@dataclass(frozen=True)
class AdapterDetail:
    """Its fields."""

    whole: gr.Column
    name: gr.State
    told: gr.HTML
    inspection: gr.HTML
    checkpoint: gr.Dropdown
    format: gr.Radio
    dtype: gr.Radio
    download: gr.Button
    pack: gr.Button
    remove: gr.Button
    close: gr.Button
    proof: gr.HTML
    """What the self-test of the last export found."""
    base: gr.Dropdown
    look: job_widget.JobWidget
    layers: gr.HTML

    @property
    def opened(self) -> list[Any]:
        """What ``show_adapter`` gives values to, in its order."""
        return [
            self.whole, self.name, self.told, self.inspection, self.checkpoint, self.pack, self.base, self.layers,
            self.proof, self.look.status,
        ]  # fmt: skip


def build_detail() -> AdapterDetail:
    with gr.Column(visible=False, elem_id="library-sheet") as whole:
        told = gr.HTML(elem_id="library-details")
        checkpoint = gr.Dropdown([FINISHED], value="", label="File", elem_id="library-checkpoint")
        with gr.Row():
            format = gr.Radio(FORMATS, value="kohya", label="For", elem_id="library-format")
            dtype = gr.Radio(TYPES, value="fp32", label="Numbers", info="fp16 is half the size")
        with gr.Row():
            download = gr.Button("Download", variant="primary", elem_id="library-download")
            pack = gr.Button("Download with settings (zip)", elem_id="library-pack")
            remove = gr.Button("Delete", variant="stop", elem_id="library-delete")
            close = gr.Button("Close", elem_id="library-close")
        proof = gr.HTML(elem_id="library-proof")
        base = gr.Dropdown(
            [], label="Base model", visible=False, allow_custom_value=True, elem_id="library-base",
            info="This adapter changes a model's weights by what they are: to look inside, say what it was trained on",
        )  # fmt: skip
        look = job_widget.job_widget("Look inside", "library-look", "secondary")
        layers = gr.HTML(elem_id="library-layers")
        inspection = gr.HTML(elem_id="library-inspection")
    name = gr.State("")
    return AdapterDetail(
        whole, name, told, inspection, checkpoint, format, dtype, download, pack, remove, close, proof, base, look,
        layers,
    )  # fmt: skip


def wire_detail(app: AppState, sheet: AdapterDetail, file: gr.DownloadButton) -> None:
    """All but what opens it, and deletes; what is downloaded lies behind the hidden button ``file``."""
    chosen = [sheet.name, sheet.checkpoint]
    sheet.checkpoint.input(partial(inspect, app), chosen, sheet.inspection, **HIDDEN)
    sheet.close.click(lambda: gr.update(visible=False), None, sheet.whole, **HIDDEN)
    sheet.download.click(
        partial(_export, app), [*chosen, sheet.format, sheet.dtype], [file, sheet.proof], **PRIVATE
    ).success(None, js=SAVE_FILE, **PRIVATE)
    sheet.pack.click(partial(_pack, app), sheet.name, [file, sheet.proof], **PRIVATE).success(
        None, js=SAVE_FILE, **PRIVATE
    )
    job_widget.wire(app, sheet.look, partial(_looking, app), _looked, [*chosen, sheet.base], [sheet.layers])


def show_adapter(app: AppState, name: str) -> list[Any]:
    """Open an adapter's sheet; what its whole file holds is read afterwards."""
    try:
        entry = app.library.find(name)
        files = [(f"step {int(path.stem)}", path.name) for path in app.library.checkpoints(name) if path.stem.isdigit()]
    except SdloraError as error:
        unknown = [gr.update(visible=True), "", page_html.note([str(error)], "bad"), ""]
        return [*unknown, gr.skip(), gr.skip(), gr.update(visible=False), "", "", ""]
    needed = not entry.problem and needs_base(entry.path)
    return [
        gr.update(visible=True), name, library_html.details(entry, app.library.picture(entry)),
        "" if entry.problem else page_html.progress_note("Reading the file", None),
        gr.update(choices=[FINISHED, *files], value="", visible=bool(files)),
        gr.update(visible=entry.kind == "run"),
        gr.update(choices=app.base_choices(), value=entry.base or None, visible=needed), "", "", "",
    ]  # fmt: skip


def inspect(app: AppState, name: str, checkpoint: str) -> str:
    """What the whole file tells."""
    try:
        if not name or app.library.find(name).problem:
            return ""
        return library_html.inspection(inspect_adapter(app.library, name, checkpoint or ""))
    except SdloraError as error:
        return page_html.note([str(error)], "bad")


def _looking(app: AppState, name: str, checkpoint: str, base: str | None) -> job_widget.FileJob:
    if not name:
        raise ConfigError("Open an adapter first.")
    file = app.library.file(name, checkpoint or "")
    settled = resolve_base(base.strip(), app.data_dir) if base else ""
    return job_widget.FileJob(inspect_layers_job(file, None, settled), "plot", f"{name}-layers.png")


def _looked(made: job_widget.FileJob) -> list[Any]:
    return ["", library_html.layers(made.job.result, made.file)]


def _export(app: AppState, name: str, checkpoint: str, format: str, dtype: str) -> list[Any]:
    """Put the adapter, in that format, behind the hidden button. Raises what stops the browser's click."""
    try:
        own = app.library.file(name, checkpoint or "")
        exported = export_to_temporary(str(own), format, dtype)
        called = f"{name}-{Path(checkpoint).stem}" if checkpoint else name
        marks = [mark for mark in (format, dtype) if mark not in ("kohya", "fp32")]
        file = _served(exported.file, f"{'-'.join([called, *marks])}{exported.file.suffix}")
        return [file, page_html.note([f"Self-test: {exported.proof}."], "good")]
    except SdloraError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _pack(app: AppState, name: str) -> list[Any]:
    try:
        folder = Path(tempfile.mkdtemp(prefix="sdlora-export-"))
        return [_served(app.library.bundle(name, folder / "pack.zip"), f"{name}.zip"), ""]
    except SdloraError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _served(file: Path, name: str) -> str:
    """A file in a temporary folder of its own as ``name`` in the page's cache; the folder goes."""
    try:
        return cache_file(file.rename(file.with_name(name)))
    finally:
        shutil.rmtree(file.parent, ignore_errors=True)
