"""The tool that bakes adapters into a base model, to be saved as a whole model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapter_jobs import bake_job
from sdlora.api.editing import BakeSettings
from sdlora.api.models import is_single_file, resolve_base, trained_base_settings
from sdlora.errors import ConfigError
from sdlora.section import Setting
from sdlora.ui import job_widget, page_html, tools_panel
from sdlora.ui.adapter_rows import AdapterRows, adapter_rows, base_values
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, PRIVATE, Trigger, Values, click_later
from sdlora.ui.setting_fields import base_setting_fields, options

TYPES = list(options(Setting("dtype", BakeSettings.model_fields["dtype"])))
ROWS = 3
"""Adapters that fit into one model."""
FOLDER, FILE = "zip", "safetensors"
KINDS = {"diffusers folder (zip)": FOLDER, "single file (.safetensors)": FILE}


@dataclass(frozen=True)
class BakeFields:
    """Components from which a job is made."""

    base: gr.Dropdown
    rows: AdapterRows
    settings: dict[str, gr.Dropdown]
    dtype: gr.Radio
    kind: gr.Radio

    @property
    def inputs(self) -> set[Block]:
        return {self.base, self.dtype, self.kind, *self.settings.values(), *self.rows.inputs}


def build(app: AppState, tab: gr.Tab, changes: Sequence[Trigger], file: gr.DownloadButton) -> None:
    """Lay the tool out; the model that it makes goes behind the hidden button ``file``.

    Its lists of adapters are read at each of ``changes``.
    """
    tools_panel.purpose("A whole base model with adapters folded into its weights, to take away.")
    base = gr.Dropdown(app.base_choices(), label="Base model", allow_custom_value=True, elem_id="bake-base")
    rows = adapter_rows("bake", ROWS, ROWS)
    settings = base_setting_fields("bake")
    with gr.Row():
        dtype = gr.Radio(TYPES, value=BakeSettings().dtype, label="Numbers", info="fp16 is half the size")
        kind = gr.Radio(list(KINDS.items()), value=FOLDER, label="As", visible=False, elem_id="bake-kind")
    fields = BakeFields(base, rows, settings, dtype, kind)
    widget = job_widget.job_widget("Bake and download", "bake")
    tab.select(app.base_update, None, base, **HIDDEN)
    tools_panel.refresh(app, changes, rows.adapters)
    first, settings_fields = rows.adapters[0], list(settings.values())
    first.select(partial(base_values, app, base, settings), [first, base], [base, *settings_fields], **HIDDEN)
    base.select(lambda: dict.fromkeys(settings_fields, "auto"), None, settings_fields, **HIDDEN)
    base.change(partial(_kinds, app), base, kind, **HIDDEN)
    start, finish = partial(_start, app, fields), partial(_finish, widget, file)
    done = job_widget.wire(app, widget, start, finish, fields.inputs, [file])
    done.success(None, js=click_later("library-file"), **PRIVATE)


def _kinds(app: AppState, base: str | None) -> Any:
    """Offer a single file where the base model is one."""
    single = bool(base) and is_single_file(resolve_base(base or "", app.data_dir))
    return gr.update(visible=single, value=FILE if single else FOLDER)


def _start(app: AppState, fields: BakeFields, values: Values) -> job_widget.FileJob:
    base = (values[fields.base] or "").strip()
    if not base:
        raise ConfigError("Choose the base model to bake into.")
    adapters = [(app.adapter(name), scale) for name, scale in fields.rows.chosen(values)]
    files = [(adapter.name, adapter.path, scale) for adapter, scale in adapters]
    settings = {name: values[field] for name, field in fields.settings.items() if values[field] != "auto"}
    settings = {**trained_base_settings((path for _, path, _ in files), values[fields.base]), **settings}
    name = "-".join([Path(values[fields.base]).stem, *(name for name, _, _ in files)])[:80]
    job = bake_job(resolve_base(base, app.data_dir), files, None, values[fields.dtype], settings)
    return job_widget.FileJob(job, "output", f"{name}.{values[fields.kind]}")


def _finish(widget: job_widget.JobWidget, file: gr.DownloadButton, job: job_widget.FileJob) -> Values:
    """Put the model behind the hidden button."""
    notices = job.job.notices
    lines = ["The model is ready; it is being saved.", *notices]
    return {widget.status: page_html.note(lines, "info" if notices else "good"), file: job.file}
