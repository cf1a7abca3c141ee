"""Fields of the way in which adapters are merged, and the line that says how much they overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.editing import FULL_RANK, MERGE_METHODS, MergeSettings
from sdlora.errors import ConfigError
from sdlora.section import settings
from sdlora.ui import page_html
from sdlora.ui.listeners import HIDDEN, Values

LABELS = {
    "sum": "Sum", "ties": "TIES", "dare": "DARE", "directions": "Directions alike", "orthogonal": "Orthogonal",
    "select": "One adapter a layer",
}  # fmt: skip
"""Display names of the methods."""
USES = {"density": FULL_RANK, "seed": ("dare",), "protect": ("orthogonal",)}
"""Methods that have an option, by its name."""
DEFAULTS = {"density": 0.5, "seed": 0, "protect": 0.5}
FIGURES = (("cosine", "alike"), ("inputs", "read in common"), ("outputs", "written in common"))
"""Fields of an ``Overlap``, and what the page calls them."""


@dataclass(frozen=True)
class MergeFields:
    """Components that choose how adapters are merged."""

    method: gr.Dropdown
    options: dict[str, gr.Number]
    """Fields of the options by name; those that the method does not have are hidden."""

    @property
    def inputs(self) -> set[Block]:
        return {self.method, *self.options.values()}

    def settings(self, values: Values) -> dict[str, Any]:
        """Return the settings of a ``MergeSettings`` that are the method's."""
        method = values[self.method]
        own = {name: values[field] for name, field in self.options.items() if method in USES[name]}
        return {"method": method, **own}


def merge_fields() -> MergeFields:
    """Lay the fields out: a method with a sentence on what it does, and the options that it has."""
    declared = {setting.name: setting for setting in settings(MergeSettings)}
    start = declared["method"].default
    method = gr.Dropdown(
        [(LABELS[name], name) for name in MERGE_METHODS], value=start, label="How", info=sentence(start),
        elem_id="combine-method",
    )  # fmt: skip
    with gr.Row():
        options = {
            name: gr.Number(
                DEFAULTS[name], label=label, info=declared[name].help, visible=False, min_width=160,
                precision=0 if name == "seed" else None, step=1 if name == "seed" else 0.05, elem_id=f"combine-{name}",
            )
            for name, label in (("density", "Share kept"), ("seed", "Seed"), ("protect", "Share protected"))
        }  # fmt: skip
    fields = MergeFields(method, options)
    method.change(partial(_show_options, fields), method, [method, *options.values()], **HIDDEN)
    return fields


def sentence(method: str) -> str:
    """Return what a method does, and that it needs a limit."""
    return MERGE_METHODS[method] + (" Choose a rank or a share below." if method in FULL_RANK else "")


def _show_options(fields: MergeFields, method: str) -> Values:
    if method not in MERGE_METHODS:
        raise ConfigError(f"{method}: there is no such way to merge")
    shown: Values = {field: gr.update(visible=method in USES[name]) for name, field in fields.options.items()}
    return {fields.method: gr.update(info=sentence(method)), **shown}


def overlap_html(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence for each pair of adapters, and its figures to unfold."""
    return "".join(
        f"<div class='report'>{page_html.note([pair['sentence']])}"
        f"<details><summary>Figures</summary>{_figures(pair['blocks'])}</details></div>"
        for pair in pairs
    )


def _figures(blocks: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th scope='col'>{label}</th>" for label in ("", *(label for _, label in FIGURES), "layers"))
    rows = "".join(
        f"<tr><th scope='row'>{escape(block['block'])}</th>"
        + "".join(f"<td>{round(block[name], 2) + 0.0:.2f}</td>" for name, _ in FIGURES)
        + f"<td>{block['layers']}</td></tr>"
        for block in blocks
    )
    note = "0: independent, as random ones are. 1: the same."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div class='measured'>{table}</div><p class='quiet'>{note}</p>"
