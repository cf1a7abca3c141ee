"""The library's tools: adapters combined, shrunk, extracted from two models, and baked into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.adapters.targets import ALL_LAYERS, GROUPS
from sdlora.api.adapter_jobs import LibraryJob, extract_job, merge_job, needs_base, resize_job
from sdlora.api.adapters import AdapterFile
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError
from sdlora.formatting import format_bytes, pluralize
from sdlora.ui import job_widget, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN

TYPES = ["fp32", "fp16", "bf16"]
MOST, SEEN = 6, 2
"""Adapters that can be combined at once, and rows that are seen at first."""
NONE = ("none", "")
ALL, RANK, SHARE = "all", "rank", "share"
WAYS = {"All of it, exactly": ALL, "A rank": RANK, "A share of its energy": SHARE}
"""How much of what is made is kept."""
NEEDED = "One of them changes a model's weights by what they are (DoRA, (IA)³): choose the base that it was trained on"


@dataclass(frozen=True)
class Rows:
    """Adapters with their scales."""

    rows: list[gr.Row]
    adapters: list[gr.Dropdown]
    scales: list[gr.Slider]


@dataclass(frozen=True)
class Keep:
    """How much to keep, and in which numbers."""

    how: gr.Radio
    rank: gr.Number
    share: gr.Slider
    dtype: gr.Radio

    @property
    def values(self) -> list[Any]:
        return [self.how, self.rank, self.share, self.dtype]


def build(app: AppState, tab: gr.Tab) -> list[Any]:
    """Lay the three out that make adapters; returns the events after which there may be one more."""
    with gr.Accordion("Combine adapters into one", open=False, elem_id="combine"):
        combined = _combine(app, tab)
    with gr.Accordion("Shrink an adapter", open=False, elem_id="shrink"):
        shrunk = _shrink(app, tab)
    with gr.Accordion("Extract an adapter from two models", open=False, elem_id="extract"):
        extracted = _extract(app, tab)
    return [combined, shrunk, extracted]


def _combine(app: AppState, tab: gr.Tab) -> Any:
    said("One file that does what several do together, each at its scale. It lands in the library.")
    mixed = rows("combine", MOST, SEEN)
    with gr.Row(elem_classes="small-buttons"):
        more = gr.Button("+ Adapter", size="sm", min_width=100, elem_id="combine-more")
        fewer = gr.Button("− Adapter", size="sm", min_width=100, elem_id="combine-fewer")
    base, keep, name = _base("combine"), _keep("combine", ALL, 32, "fp32"), _name("combine", "their names")
    place, shown = job_widget.job_widget("Combine", "combine"), gr.State(SEEN)
    for button, change in ((more, 1), (fewer, -1)):
        button.click(partial(_show, change), shown, [shown, *mixed.rows], **HIDDEN)
    refresh(app, tab, mixed.adapters)
    for row in mixed.adapters:
        row.select(partial(_base_of, app), mixed.adapters, base, **HIDDEN)
    inputs = [name, base, *keep.values, shown, *mixed.adapters, *mixed.scales]
    return job_widget.wire(app, place, partial(_combining, app), partial(_made, app), inputs)


def _combining(app: AppState, name: str, base: str, *values: Any) -> LibraryJob:
    cut, (shown, *rest) = _cut(*values[:4]), values[4:]
    chosen = [(app.adapter(row), scale) for row, scale in pairs(rest, int(shown))]
    files = [adapter for adapter, _ in chosen]
    adapters = [(adapter.name, adapter.path, scale) for adapter, scale in chosen]
    return merge_job(app.library, adapters, name or "", base=_settled(app, base, files), **cut)


def _shrink(app: AppState, tab: gr.Tab) -> Any:
    said("The same adapter in a smaller file: the strongest directions of each layer stay. Any kind becomes a LoRA.")
    adapter = gr.Dropdown(
        [NONE], value="", label="Adapter to shrink", allow_custom_value=True, elem_id="shrink-adapter"
    )
    base, keep, name = _base("shrink"), _keep("shrink", SHARE, 8, "fp16"), _name("shrink", "the adapter's and -small")
    place = job_widget.job_widget("Shrink", "shrink")
    refresh(app, tab, [adapter])
    adapter.select(partial(_base_of, app), adapter, base, **HIDDEN)
    inputs = [adapter, name, base, *keep.values]
    return job_widget.wire(app, place, partial(_shrinking, app), partial(_made, app), inputs)


def _shrinking(app: AppState, adapter: str, name: str, base: str, *keep: Any) -> LibraryJob:
    if not adapter:
        raise ConfigError("Choose the adapter to shrink.")
    found, cut = app.adapter(adapter), _cut(*keep)
    return resize_job(app.library, (found.name, found.path), name or "", base=_settled(app, base, [found]), **cut)


def _extract(app: AppState, tab: gr.Tab) -> Any:
    said("What a finetuned model has learnt beyond its base, as an adapter. Models are read a layer at a time.")
    base, tuned = (
        gr.Dropdown(
            app.base_choices(), value=None, label=label, info=info, allow_custom_value=True, elem_id=f"extract-{which}"
        )
        for which, label, info in (
            ("base", "Its base model", "a model, or its folder, .safetensors file or hub id"),
            ("tuned", "Finetuned model", "the one that the adapter is to lead to"),
        )
    )
    keep = _keep("extract", RANK, 32, "fp16")
    with gr.Row():
        targets = gr.Dropdown(
            list(GROUPS), value=ALL_LAYERS, label="Layers", info="a group, or patterns", allow_custom_value=True,
            elem_id="extract-targets", min_width=160,
        )  # fmt: skip
        text = gr.Checkbox(True, label="Text encoders too", elem_id="extract-text", min_width=160)
    name, place = _name("extract", "the finetuned model's"), job_widget.job_widget("Extract", "extract")
    for field in (base, tuned):
        tab.select(app.base_update, None, field, **HIDDEN)
    inputs = [base, tuned, targets, text, name, *keep.values]
    return job_widget.wire(app, place, partial(_extracting, app), partial(_made, app), inputs)


def _extracting(app: AppState, base: str, tuned: str, targets: str, text: bool, name: str, *keep: Any) -> LibraryJob:
    if not (base or "").strip() or not (tuned or "").strip():
        raise ConfigError("Choose both models: the base, and the one that was finetuned from it.")
    first, second = (resolve_base(model.strip(), app.data_dir) for model in (base, tuned))
    what: dict[str, Any] = {"targets": targets, "text_encoder": bool(text), **_cut(*keep)}
    return extract_job(app.library, first, second, name or "", **what)


def said(words: str) -> gr.HTML:
    """What a tool is for."""
    return gr.HTML(f"<p class='quiet'>{words}</p>")


def rows(place: str, most: int, seen: int) -> Rows:
    """Fields for ``most`` adapters with scales, of which ``seen`` are seen."""
    found = Rows([], [], [])
    for number in range(1, most + 1):
        with gr.Row(visible=number <= seen, elem_classes="adapter") as row:
            field = gr.Dropdown(
                [NONE], value="", label=f"Adapter {number}", allow_custom_value=True, scale=2,
                elem_id=f"{place}-{number}",
            )  # fmt: skip
            scale = gr.Slider(
                -2, 2, 1.0, step=0.05, label=f"Adapter {number}: scale", scale=3, min_width=140,
                elem_id=f"{place}-scale-{number}",
            )  # fmt: skip
        found.rows.append(row)
        found.adapters.append(field)
        found.scales.append(scale)
    return found


def pairs(values: Sequence[Any], shown: int) -> list[tuple[str, float]]:
    """The names and scales in the first ``shown`` rows, of those that have a name."""
    half = len(values) // 2
    named = zip(values[:half], values[half:], strict=True)
    return [(name, float(scale)) for name, scale in list(named)[:shown] if name]


def refresh(app: AppState, tab: gr.Tab, fields: Sequence[gr.Dropdown]) -> None:
    """Give ``fields`` the adapters that there are whenever ``tab`` is chosen; what is chosen in them stays."""

    def choices() -> Any:
        names = [NONE, *((adapter.name, adapter.name) for adapter in app.refresh().adapters)]
        found = [gr.update(choices=names) for _ in fields]
        return found if len(found) > 1 else found[0]

    tab.select(choices, None, list(fields), **HIDDEN)


def _show(change: int, shown: int) -> list[Any]:
    shown = min(MOST, max(SEEN, shown + change))
    return [shown, *(gr.update(visible=number < shown) for number in range(MOST))]


def _base(place: str) -> gr.Dropdown:
    return gr.Dropdown(
        [], label="Base model", info=NEEDED, visible=False, allow_custom_value=True, elem_id=f"{place}-base"
    )


def _name(place: str, otherwise: str) -> gr.Textbox:
    return gr.Textbox(
        "", label="Name in the library", placeholder=f"left empty: {otherwise}", max_lines=1, elem_id=f"{place}-name"
    )


def _keep(place: str, how: str, rank: int, dtype: str) -> Keep:
    ways = [(label, way) for label, way in WAYS.items() if way != ALL or how == ALL]
    found = Keep(
        gr.Radio(ways, value=how, label="Keep", elem_id=f"{place}-keep"),
        gr.Number(
            rank, label="Rank of each layer", info="at most; a smaller one makes a smaller file", precision=0,
            visible=how == RANK, elem_id=f"{place}-rank",
        ),
        gr.Slider(
            50, 100, 95, step=0.5, label="Share in percent", visible=how == SHARE, elem_id=f"{place}-share",
            info="of the squared norm of each layer's change, in as low a rank as holds it",
        ),
        gr.Radio(TYPES, value=dtype, label="Numbers", info="fp16 is half the size", elem_id=f"{place}-dtype"),
    )  # fmt: skip
    found.how.change(
        lambda way: [gr.update(visible=way == RANK), gr.update(visible=way == SHARE)],
        found.how, [found.rank, found.share], **HIDDEN,
    )  # fmt: skip
    return found


def _cut(how: str, rank: float | None, share: float | None, dtype: str) -> dict[str, Any]:
    """The arguments that these fields stand for. Raises ConfigError for an empty one."""
    if how == RANK and rank is None:
        raise ConfigError("Give a rank of 1 or more.")
    energy = float(share) / 100 if how == SHARE and share is not None else None
    return {"rank": int(rank) if how == RANK and rank is not None else None, "energy": energy, "dtype": dtype}


def _base_of(app: AppState, *names: str) -> Any:
    """The field for the base: seen where one of the adapters needs it, with what that one was trained on."""
    known = {adapter.name: adapter for adapter in app.snapshot().adapters}
    needing = [known[name] for name in names if name in known and needs_base(known[name].path)]
    base = next((adapter.base for adapter in needing if adapter.base), None)
    return gr.update(choices=app.base_choices(), value=base, visible=bool(needing))


def _settled(app: AppState, base: str | None, adapters: Sequence[AdapterFile]) -> str:
    """The base to go by: the one that is chosen where one is needed, else what the adapters were trained on."""
    if base and any(needs_base(adapter.path) for adapter in adapters):
        return resolve_base(base.strip(), app.data_dir)
    return next((adapter.base for adapter in adapters if adapter.base), "")


def _made(app: AppState, making: LibraryJob) -> list[str]:
    """What has come into the library."""
    app.refresh()
    answer, size = making.result, format_bytes(app.library.find(making.name).size)
    low, high = answer["ranks"]
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    lines = [f"{making.name} is in the library: {pluralize(answer['layers'], 'layer')}, {ranks}, {size}."]
    if "kept" in answer:
        before = Path(making.request["file"]).stat().st_size
        lines.append(f"{answer['kept']:.1%} of the energy is kept; it was {format_bytes(before)}.")
    lines += [f"Self-test: {answer['proof']}.", *making.notices, "Choose it on the tab Create to draw with it."]
    return [page_html.note(lines, "good")]
