"""The library's tools that combine adapters, shrink one, or extract one from two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.adapters.targets import ALL_LAYERS, GROUPS
from sdlora.api.adapter_jobs import (
    LibraryJob,
    ToolJob,
    compare_job,
    extract_job,
    merge_job,
    needs_base,
    resize_job,
)
from sdlora.api.adapters import AdapterFile
from sdlora.api.editing import EditSettings, ExportSettings, ExtractSettings, MergeSettings
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError
from sdlora.formatting import format_bytes, pluralize
from sdlora.section import Setting
from sdlora.ui import job_widget, page_html
from sdlora.ui.adapter_rows import NONE, AdapterRows, adapter_choices, adapter_rows, row_buttons
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import EVERY, HIDDEN, Trigger, Values
from sdlora.ui.merge_fields import MergeFields, merge_fields, overlap_html
from sdlora.ui.setting_fields import options

TYPES = list(options(Setting("dtype", ExportSettings.model_fields["dtype"])))
MAX_ROWS, MIN_ROWS = 6, 2
"""Adapters that can be combined at once, and rows that are visible at first."""
ALL, RANK, SHARE = "all", "rank", "share"
WAYS = {"All of it, exactly": ALL, "A rank": RANK, "A share of its energy": SHARE}
"""Ways to limit the size of a result."""
NEEDED = "One of them changes a model's weights by what they are (DoRA, (IA)³): choose the base that it was trained on"


@dataclass(frozen=True)
class CutFields:
    """Components that limit the size of a result."""

    how: gr.Radio
    rank: gr.Number
    share: gr.Slider
    dtype: gr.Radio

    @property
    def inputs(self) -> set[Block]:
        return {self.how, self.rank, self.share, self.dtype}

    def limit(self, values: Values) -> dict[str, Any]:
        """Return the settings of a ``RankLimit``. Raises ConfigError for an empty rank."""
        how, rank, share = values[self.how], values[self.rank], values[self.share]
        if how == RANK and rank is None:
            raise ConfigError("Give a rank of 1 or more.")
        return {
            "rank": int(rank) if how == RANK else None,
            "energy": float(share) / 100 if how == SHARE and share is not None else None,
        }


def build(app: AppState, tab: gr.Tab, changes: Sequence[Trigger]) -> list[Any]:
    """Lay the tools out; return the events after which the library may have one more adapter.

    Their lists of adapters are read at each of ``changes``.
    """
    with gr.Accordion("Combine adapters into one", open=False, elem_id="combine"):
        combined = _combine(app, changes)
    with gr.Accordion("Shrink an adapter", open=False, elem_id="shrink"):
        shrunk = _shrink(app, changes)
    with gr.Accordion("Extract an adapter from two models", open=False, elem_id="extract"):
        extracted = _extract(app, tab)
    return [combined, shrunk, extracted]


@dataclass(frozen=True)
class CombineFields:
    """Components from which adapters are combined."""

    rows: AdapterRows
    base: gr.Dropdown
    cut: CutFields
    name: gr.Textbox
    method: MergeFields

    @property
    def inputs(self) -> set[Block]:
        return {self.name, *self.compared, *self.cut.inputs, *self.method.inputs}

    @property
    def compared(self) -> set[Block]:
        """Components that the comparison reads."""
        return {self.base, self.rows.visible, *self.rows.inputs}


def _combine(app: AppState, changes: Sequence[Trigger]) -> Any:
    purpose("One file that does what several do together, each at its scale. It goes to the library.")
    rows = adapter_rows("combine", MAX_ROWS, MIN_ROWS)
    row_buttons(rows, MIN_ROWS, "combine-more", "combine-fewer")
    base = _base("combine")
    comparison = job_widget.job_widget("Compare what they change", "combine-overlap", "secondary")
    overlap = gr.HTML(elem_id="combine-overlap")
    method, cut, name = merge_fields(), _cut("combine", ALL, 32, "fp32"), _name("combine", "their names")
    widget = job_widget.job_widget("Combine", "combine")
    fields = CombineFields(rows, base, cut, name, method)
    refresh(app, changes, rows.adapters)
    for row in rows.adapters:
        row.select(partial(_show_base, app, rows.adapters), set(rows.adapters), base, **HIDDEN)
        row.change(lambda: "", None, overlap, **HIDDEN)  # What was said of other adapters goes.
    job_widget.wire(
        app, comparison, partial(_start_comparing, app, fields),
        lambda job: {comparison.status: "", overlap: overlap_html(job.result)}, fields.compared, [overlap],
    )  # fmt: skip
    return job_widget.wire(
        app, widget, partial(_start_combining, app, fields), partial(_finish, app, widget), fields.inputs
    )  # fmt: skip


def _chosen(app: AppState, fields: CombineFields, values: Values) -> tuple[list[tuple[AdapterFile, float]], str]:
    """Return the chosen adapters with their scales, and the base model."""
    chosen = fields.rows.chosen(values, int(values[fields.rows.visible]))
    adapters = [(app.adapter(name), scale) for name, scale in chosen]
    return adapters, _resolve(app, values[fields.base], [adapter for adapter, _ in adapters])


def _start_comparing(app: AppState, fields: CombineFields, values: Values) -> ToolJob:
    adapters, base = _chosen(app, fields, values)
    return compare_job([(adapter.name, adapter.path) for adapter, _ in adapters], base)


def _start_combining(app: AppState, fields: CombineFields, values: Values) -> LibraryJob:
    limit = fields.cut.limit(values)
    adapters, base = _chosen(app, fields, values)
    files = [(adapter.name, adapter.path, scale) for adapter, scale in adapters]
    settings = MergeSettings.checked(base=base, **limit, **fields.method.settings(values))
    return merge_job(app.library, files, settings, values[fields.name] or "", values[fields.cut.dtype])


@dataclass(frozen=True)
class ShrinkFields:
    """Components from which an adapter is shrunk."""

    adapter: gr.Dropdown
    base: gr.Dropdown
    cut: CutFields
    name: gr.Textbox

    @property
    def inputs(self) -> set[Block]:
        return {self.adapter, self.name, self.base, *self.cut.inputs}


def _shrink(app: AppState, changes: Sequence[Trigger]) -> Any:
    purpose("The same adapter in a smaller file: the strongest directions of each layer stay. Any kind becomes a LoRA.")
    adapter = gr.Dropdown(
        [NONE], value="", label="Adapter to shrink", allow_custom_value=True, elem_id="shrink-adapter"
    )  # fmt: skip
    base, cut = _base("shrink"), _cut("shrink", SHARE, 8, "fp16")
    fields = ShrinkFields(adapter, base, cut, _name("shrink", "the adapter's and -small"))
    widget = job_widget.job_widget("Shrink", "shrink")
    refresh(app, changes, [adapter])
    adapter.select(partial(_show_base, app, [adapter]), {adapter}, base, **HIDDEN)
    return job_widget.wire(
        app, widget, partial(_start_shrinking, app, fields), partial(_finish, app, widget), fields.inputs
    )  # fmt: skip


def _start_shrinking(app: AppState, fields: ShrinkFields, values: Values) -> LibraryJob:
    if not values[fields.adapter]:
        raise ConfigError("Choose the adapter to shrink.")
    adapter, limit = app.adapter(values[fields.adapter]), fields.cut.limit(values)
    settings = EditSettings.checked(base=_resolve(app, values[fields.base], [adapter]), **limit)
    file, name = (adapter.name, adapter.path), values[fields.name] or ""
    return resize_job(app.library, file, settings, name, values[fields.cut.dtype])


@dataclass(frozen=True)
class ExtractFields:
    """Components from which an adapter is extracted."""

    base: gr.Dropdown
    tuned: gr.Dropdown
    cut: CutFields
    targets: gr.Dropdown
    text_encoder: gr.Checkbox
    name: gr.Textbox

    @property
    def inputs(self) -> set[Block]:
        return {self.base, self.tuned, self.targets, self.text_encoder, self.name, *self.cut.inputs}


def _extract(app: AppState, tab: gr.Tab) -> Any:
    purpose("What a finetuned model has learnt beyond its base, as an adapter. Models are read a layer at a time.")
    base, tuned = (
        gr.Dropdown(
            app.base_choices(), value=None, label=label, info=info, allow_custom_value=True, elem_id=f"extract-{which}"
        )
        for which, label, info in (
            ("base", "Its base model", "a model, or its folder, .safetensors file or hub id"),
            ("tuned", "Finetuned model", "the one that the adapter is to lead to"),
        )
    )
    cut = _cut("extract", RANK, 32, "fp16")
    with gr.Row():
        targets = gr.Dropdown(
            list(GROUPS), value=ALL_LAYERS, label="Layers", info="a group, or patterns", allow_custom_value=True,
            elem_id="extract-targets", min_width=160,
        )  # fmt: skip
        text_encoder = gr.Checkbox(True, label="Text encoders too", elem_id="extract-text", min_width=160)
    fields = ExtractFields(base, tuned, cut, targets, text_encoder, _name("extract", "the finetuned model's"))
    widget = job_widget.job_widget("Extract", "extract")
    for field in (base, tuned):
        tab.select(app.base_update, None, field, **HIDDEN)
    return job_widget.wire(
        app, widget, partial(_start_extracting, app, fields), partial(_finish, app, widget), fields.inputs
    )  # fmt: skip


def _start_extracting(app: AppState, fields: ExtractFields, values: Values) -> LibraryJob:
    base, tuned = ((values[field] or "").strip() for field in (fields.base, fields.tuned))
    if not base or not tuned:
        raise ConfigError("Choose both models: the base, and the one that was finetuned from it.")
    settings = ExtractSettings.checked(
        targets=values[fields.targets], text_encoder=bool(values[fields.text_encoder]), **fields.cut.limit(values)
    )
    base, tuned = (resolve_base(model, app.data_dir) for model in (base, tuned))
    return extract_job(app.library, base, tuned, settings, values[fields.name] or "", values[fields.cut.dtype])


def purpose(sentence: str) -> gr.HTML:
    """Say what a tool is for."""
    return gr.HTML(f"<p class='quiet'>{sentence}</p>")


def refresh(app: AppState, changes: Sequence[Trigger], fields: Sequence[gr.Dropdown]) -> None:
    """List the adapters in ``fields`` at each of ``changes``; what is chosen in them stays."""

    def choices() -> Values:
        adapters = adapter_choices(app.refresh().adapters)
        return {field: gr.update(choices=adapters) for field in fields}

    gr.on(changes, choices, None, list(fields), **EVERY)


def _base(prefix: str) -> gr.Dropdown:
    return gr.Dropdown(
        [], label="Base model", info=NEEDED, visible=False, allow_custom_value=True, elem_id=f"{prefix}-base"
    )  # fmt: skip


def _name(prefix: str, fallback: str) -> gr.Textbox:
    return gr.Textbox(
        "", label="Name in the library", placeholder=f"left empty: {fallback}", max_lines=1, elem_id=f"{prefix}-name"
    )  # fmt: skip


def _cut(prefix: str, how: str, rank: int, dtype: str) -> CutFields:
    ways = [(label, way) for label, way in WAYS.items() if way != ALL or how == ALL]
    fields = CutFields(
        gr.Radio(ways, value=how, label="Keep", elem_id=f"{prefix}-keep"),
        gr.Number(
            rank, label="Rank of each layer", info="at most; a smaller one makes a smaller file", precision=0,
            visible=how == RANK, elem_id=f"{prefix}-rank",
        ),
        gr.Slider(
            50, 100, 95, step=0.5, label="Share in percent", visible=how == SHARE, elem_id=f"{prefix}-share",
            info="of the squared norm of each layer's change, in as low a rank as holds it",
        ),
        gr.Radio(TYPES, value=dtype, label="Numbers", info="fp16 is half the size", elem_id=f"{prefix}-dtype"),
    )  # fmt: skip
    fields.how.change(
        lambda way: [gr.update(visible=way == RANK), gr.update(visible=way == SHARE)],
        fields.how, [fields.rank, fields.share], **HIDDEN,
    )  # fmt: skip
    return fields


def _show_base(app: AppState, rows: Sequence[gr.Dropdown], values: Values) -> Any:
    """Show the field for the base model if one of the adapters needs it, with the model that one was trained on."""
    adapters = {adapter.name: adapter for adapter in app.snapshot().adapters}
    names = [values[row] for row in rows]
    needing = [adapters[name] for name in names if name in adapters and needs_base(adapters[name].path)]
    base = next((adapter.base for adapter in needing if adapter.base), None)
    return gr.update(choices=app.base_choices(), value=base, visible=bool(needing))


def _resolve(app: AppState, base: str | None, adapters: Sequence[AdapterFile]) -> str:
    """Return the chosen base model if an adapter needs one, else the one that the adapters were trained on."""
    if base and any(needs_base(adapter.path) for adapter in adapters):
        return resolve_base(base.strip(), app.data_dir)
    return next((adapter.base for adapter in adapters if adapter.base), "")


def _finish(app: AppState, widget: job_widget.JobWidget, job: LibraryJob) -> Values:
    """Describe the new adapter."""
    app.refresh()
    result, size = job.result, format_bytes(app.library.find(job.name).size)
    low, high = result["ranks"]
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    lines = [f"{job.name} is in the library: {pluralize(result['layers'], 'layer')}, {ranks}, {size}."]
    if result.get("kept") is not None:
        before = f"; it was {format_bytes(Path(job.request['file']).stat().st_size)}" if "file" in job.request else ""
        lines.append(f"{result['kept']:.1%} of the energy is kept{before}.")
    lines += [f"Self-test: {result['proof']}.", *job.notices, "Choose it on the tab Create to use it."]
    return {widget.status: page_html.note(lines, "good")}
