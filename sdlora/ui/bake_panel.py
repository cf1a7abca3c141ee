"""Adapters baked into a base model: a whole model to take away."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.adapter_jobs import bake_job
from sdlora.api.models import is_single_file, resolve_base, trained_base_settings
from sdlora.errors import ConfigError
from sdlora.generation.infotext import BASE_OVERRIDES
from sdlora.ui import job_widget, page_html, tools_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.create_form import said_of_base
from sdlora.ui.import_tab import SAVE_FILE
from sdlora.ui.listeners import HIDDEN, PRIVATE

ROWS = 3
"""Adapters in one model."""
FOLDER, FILE = "zip", "safetensors"
KINDS = {"diffusers folder (zip)": FOLDER, "single file (.safetensors)": FILE}


def build(app: AppState, tab: gr.Tab, file: gr.DownloadButton) -> None:
    """A base, adapters with their scales, and the model made of them behind the hidden button ``file``."""
    tools_panel.said("A whole base model with adapters folded into its weights, to take away.")
    base = gr.Dropdown(app.base_choices(), label="Base model", allow_custom_value=True, elem_id="bake-base")
    mixed = tools_panel.rows("bake", ROWS, ROWS)
    said = said_of_base("bake")
    with gr.Row():
        dtype = gr.Radio(["fp16", "fp32"], value="fp16", label="Numbers", info="fp16 is half the size")
        kind = gr.Radio(list(KINDS.items()), value=FOLDER, label="As", visible=False, elem_id="bake-kind")
    place = job_widget.job_widget("Bake and download", "bake")
    tab.select(app.base_update, None, base, **HIDDEN)
    tools_panel.refresh(app, tab, mixed.adapters)
    first = mixed.adapters[0]
    first.select(partial(_base_of, app), [first, base], [base, *said], **HIDDEN)
    base.select(lambda: ["auto"] * len(said), None, said, **HIDDEN)
    base.change(partial(_kinds, app), base, kind, **HIDDEN)
    inputs = [base, dtype, kind, *said, *mixed.adapters, *mixed.scales]
    done = job_widget.wire(app, place, partial(_baking, app), _baked, inputs, [file])
    done.success(None, js=SAVE_FILE, **PRIVATE)


def _base_of(app: AppState, name: str, before: str) -> list[Any]:
    """An adapter brings the base that it was trained on; what was said of another base is no more."""
    base = next((adapter.base for adapter in app.snapshot().adapters if adapter.name == name), "")
    fields = len(BASE_OVERRIDES)
    return [base, *["auto"] * fields] if base and base != before else [gr.skip()] * (1 + fields)


def _kinds(app: AppState, base: str | None) -> Any:
    """A single file can become one; a folder, a zip of one."""
    single = bool(base) and is_single_file(resolve_base(base or "", app.data_dir))
    return gr.update(visible=single, value=FILE if single else FOLDER)


def _baking(app: AppState, base: str, dtype: str, kind: str, *values: Any) -> job_widget.FileJob:
    said = {name: value for name, value in zip(BASE_OVERRIDES, values, strict=False) if value != "auto"}
    chosen = tools_panel.pairs(values[len(BASE_OVERRIDES) :], ROWS)
    if not (base or "").strip():
        raise ConfigError("Choose the base model to bake into.")
    files = [(app.adapter(name), scale) for name, scale in chosen]
    adapters = [(adapter.name, adapter.path, scale) for adapter, scale in files]
    said = {**trained_base_settings((path for _, path, _ in adapters), base), **said}
    called = "-".join([Path(base).stem, *(name for name, _, _ in adapters)])[:80]
    base = resolve_base(base.strip(), app.data_dir)
    return job_widget.FileJob(bake_job(base, adapters, None, dtype, said), "output", f"{called}.{kind}")


def _baked(made: job_widget.FileJob) -> list[Any]:
    """The model lies behind the hidden button."""
    notes = made.job.notices
    words = page_html.note(["The model is ready; it is being saved.", *notes], "info" if notes else "good")
    return [words, made.file]
