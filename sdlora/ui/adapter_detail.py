"""The details of one adapter of the library, and its export in any format."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapter_jobs import inspect_adapter, inspect_layers_job, needs_base
from sdlora.api.adapters import exported_file
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError, SdloraError
from sdlora.ui import file_evaluation_panel, job_widget, library_html, page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.evaluation_panel import EvaluationPanel
from sdlora.ui.listeners import HIDDEN, PRIVATE, Values, click_later
from sdlora.ui.tools_panel import TYPES

FORMATS = [("A1111, ComfyUI, kohya", "kohya"), ("diffusers", "diffusers"), ("PEFT (zip)", "peft")]
FINISHED = ("the newest", "")


@dataclass(frozen=True)
class AdapterDetail:
    """Components of the details."""

    panel: gr.Column
    name: gr.State
    facts: gr.HTML
    checkpoint: gr.Dropdown
    format: gr.Radio
    dtype: gr.Radio
    download: gr.Button
    bundle: gr.Button
    delete: gr.Button
    close: gr.Button
    proof: gr.HTML
    """Result of the last export's self-test."""
    base: gr.Dropdown
    inspect_layers: job_widget.JobWidget
    layers: gr.HTML
    inspection: gr.HTML
    evaluation: EvaluationPanel
    """Only of an adapter that has no run."""

    @property
    def opened(self) -> list[Block]:
        """Components that ``show_adapter`` updates."""
        return [
            self.panel, self.name, self.facts, self.inspection, self.checkpoint, self.bundle, self.base, self.layers,
            self.proof, self.inspect_layers.status,
        ]  # fmt: skip


def build_detail(app: AppState) -> AdapterDetail:
    """Lay the details out; they are hidden until an adapter is opened."""
    with gr.Column(visible=False, elem_id="library-sheet") as panel:
        facts = gr.HTML(elem_id="library-details")
        checkpoint = gr.Dropdown([FINISHED], value="", label="File", elem_id="library-checkpoint")
        with gr.Row():
            format = gr.Radio(FORMATS, value="kohya", label="For", elem_id="library-format")
            dtype = gr.Radio(TYPES, value="fp32", label="Numbers", info="fp16 is half the size")
        with gr.Row():
            download = gr.Button("Download", variant="primary", elem_id="library-download")
            bundle = gr.Button("Download with settings (zip)", elem_id="library-pack")
            delete = gr.Button("Delete", variant="stop", elem_id="library-delete")
            close = gr.Button("Close", elem_id="library-close")
        proof = gr.HTML(elem_id="library-proof")
        base = gr.Dropdown(
            [], label="Base model", visible=False, allow_custom_value=True, elem_id="library-base",
            info="This adapter changes a model's weights by what they are: to look inside, say what it was trained on",
        )  # fmt: skip
        inspect_layers = job_widget.job_widget("Look inside", "library-look", "secondary")
        layers = gr.HTML(elem_id="library-layers")
        inspection = gr.HTML(elem_id="library-inspection")
        name = gr.State("")
        evaluation = file_evaluation_panel.build(app, name)
    return AdapterDetail(
        panel, name, facts, checkpoint, format, dtype, download, bundle, delete, close, proof, base,
        inspect_layers, layers, inspection, evaluation,
    )  # fmt: skip


def wire_detail(app: AppState, detail: AdapterDetail, file: gr.DownloadButton) -> None:
    """Wire all but opening and deleting; downloads go behind the hidden button ``file``."""
    chosen = [detail.name, detail.checkpoint]
    detail.checkpoint.input(partial(inspect, app), chosen, detail.inspection, **HIDDEN)
    detail.close.click(lambda: gr.update(visible=False), None, detail.panel, **HIDDEN)
    detail.download.click(
        partial(_export, app, detail), {*chosen, detail.format, detail.dtype}, [file, detail.proof], **PRIVATE
    ).success(None, js=click_later("library-file"), **PRIVATE)
    detail.bundle.click(partial(_bundle, app), detail.name, [file, detail.proof], **PRIVATE).success(
        None, js=click_later("library-file"), **PRIVATE
    )
    job_widget.wire(
        app, detail.inspect_layers, partial(_start_inspection, app, detail), partial(_finish_inspection, detail),
        {*chosen, detail.base}, [detail.layers],
    )  # fmt: skip


def show_adapter(app: AppState, detail: AdapterDetail, name: str) -> Values:
    """Open the details of an adapter; its whole file is read afterwards."""
    cleared: Values = {detail.layers: "", detail.proof: "", detail.inspect_layers.status: ""}
    try:
        entry = app.library.find(name)
        checkpoints = app.library.checkpoints(name)
    except SdloraError as error:
        return {
            detail.panel: gr.update(visible=True), detail.name: "", detail.facts: page_html.note([str(error)], "bad"),
            detail.inspection: "", detail.base: gr.update(visible=False), **cleared,
        }  # fmt: skip
    files = [(f"step {int(path.stem)}", path.name) for path in checkpoints if path.stem.isdigit()]
    needs = not entry.problem and needs_base(entry.path)
    return {
        detail.panel: gr.update(visible=True),
        detail.name: name,
        detail.facts: library_html.details(entry, app.library.image(entry)),
        detail.inspection: "" if entry.problem else page_html.progress_note("Reading the file", None),
        detail.checkpoint: gr.update(choices=[FINISHED, *files], value="", visible=bool(files)),
        detail.bundle: gr.update(visible=entry.kind == "run"),
        detail.base: gr.update(choices=app.base_choices(), value=entry.base or None, visible=needs),
        **cleared,
    }


def inspect(app: AppState, name: str, checkpoint: str) -> str:
    """Describe the whole file."""
    try:
        if not name or app.library.find(name).problem:
            return ""
        return library_html.inspection(inspect_adapter(app.library, name, checkpoint or ""))
    except SdloraError as error:
        return page_html.note([str(error)], "bad")


def _start_inspection(app: AppState, detail: AdapterDetail, values: Values) -> job_widget.FileJob:
    name, base = values[detail.name], values[detail.base]
    if not name:
        raise ConfigError("Open an adapter first.")
    file = app.library.file(name, values[detail.checkpoint] or "")
    resolved = resolve_base(base.strip(), app.data_dir) if base else ""
    return job_widget.FileJob(inspect_layers_job(file, None, resolved), "plot", f"{name}-layers.png")


def _finish_inspection(detail: AdapterDetail, job: job_widget.FileJob) -> Values:
    return {detail.inspect_layers.status: "", detail.layers: library_html.layers(job.job.result, job.file)}


def _export(app: AppState, detail: AdapterDetail, values: Values) -> list[Any]:
    """Put the adapter, in the chosen format, behind the hidden button; an error stops the click that follows."""
    name, checkpoint = values[detail.name], values[detail.checkpoint] or ""
    format, dtype = values[detail.format], values[detail.dtype]
    try:
        with exported_file(str(app.library.file(name, checkpoint)), format, dtype) as exported:
            parts = [f"{name}-{Path(checkpoint).stem}" if checkpoint else name]
            parts += [part for part in (format, dtype) if part not in ("kohya", "fp32")]
            file = exported.file.rename(exported.file.with_name(f"{'-'.join(parts)}{exported.file.suffix}"))
            return [cache_file(file), page_html.note([f"Self-test: {exported.proof}."], "good")]
    except SdloraError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _bundle(app: AppState, name: str) -> list[Any]:
    try:
        with tempfile.TemporaryDirectory(prefix="sdlora-export-") as folder:
            pack = app.library.bundle(name, Path(folder) / "pack.zip")
            return [cache_file(pack.rename(pack.with_name(f"{name}.zip"))), ""]
    except SdloraError as error:
        raise gr.Error(str(error), print_exception=False) from None
