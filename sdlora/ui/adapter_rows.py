"""Rows that each choose an adapter and its scale, and what a chosen adapter brings along: base, scale and words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapters import AdapterFile, preferred_weight, trigger_words
from sdlora.errors import SdloraError
from sdlora.formats.lora_tags import lora_tag, parse_lora_tags
from sdlora.formatting import one_line
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, Values

NONE = ("none", "")


@dataclass(frozen=True)
class AdapterRows:
    """Components of the rows; hidden rows keep their values."""

    visible: gr.State
    """Number of visible rows, the first ones."""
    rows: list[gr.Row] = field(default_factory=list)
    adapters: list[gr.Dropdown] = field(default_factory=list)
    scales: list[gr.Slider] = field(default_factory=list)

    @property
    def inputs(self) -> set[Block]:
        """Components that ``chosen`` reads."""
        return {*self.adapters, *self.scales}

    def chosen(self, values: Values, visible: int | None = None) -> list[tuple[str, float]]:
        """Return the names and scales of the first ``visible`` rows, of those with an adapter."""
        rows = list(zip(self.adapters, self.scales, strict=True))[:visible]
        return [(values[adapter], float(values[scale])) for adapter, scale in rows if values[adapter]]

    def show(self, number: int) -> Values:
        """Show the first ``number`` rows."""
        return {self.visible: number, **{row: gr.update(visible=n < number) for n, row in enumerate(self.rows)}}


def adapter_rows(prefix: str, number: int, visible: int, scale_label: str = "Adapter {}: scale") -> AdapterRows:
    """Lay out rows for ``number`` adapters with scales, of which the first ``visible`` are shown."""
    found = AdapterRows(gr.State(visible))
    for n in range(1, number + 1):
        with gr.Row(visible=n <= visible, elem_classes="adapter") as row:
            # Custom values: Gradio refuses every event of a page on which a deleted adapter is chosen.
            adapter = gr.Dropdown(
                [NONE], value="", label=f"Adapter {n}", allow_custom_value=True, scale=2, elem_id=f"{prefix}-{n}"
            )  # fmt: skip
            scale = gr.Slider(
                -2, 2, 1.0, step=0.05, label=scale_label.format(n), scale=3, min_width=140,
                elem_id=f"{prefix}-scale-{n}",
            )  # fmt: skip
        found.rows.append(row)
        found.adapters.append(adapter)
        found.scales.append(scale)
    return found


def row_buttons(rows: AdapterRows, least: int, more_id: str, fewer_id: str) -> None:
    """Lay out the buttons that show one row more, or one fewer down to ``least``."""
    with gr.Row(elem_classes="small-buttons"):
        more = gr.Button("+ Adapter", size="sm", min_width=100, elem_id=more_id)
        fewer = gr.Button("− Adapter", size="sm", min_width=100, elem_id=fewer_id)
    for button, change in ((more, 1), (fewer, -1)):
        button.click(
            partial(_change_rows, rows, least, change), rows.visible, [rows.visible, *rows.rows], **HIDDEN
        )  # fmt: skip


def _change_rows(rows: AdapterRows, least: int, change: int, visible: int) -> Values:
    return rows.show(min(len(rows.rows), max(least, visible + change)))


def adapter_choices(adapters: Iterable[AdapterFile]) -> list[tuple[str, str]]:
    """Return the choices of a field for an adapter, with the one of none."""
    return [NONE, *((adapter.name, adapter.name) for adapter in adapters)]


def base_values(
    app: AppState, base: gr.Dropdown, base_settings: Mapping[str, gr.Dropdown], adapter: str, before: str
) -> Values:
    """Choose the base model of an adapter; settings that were made for another base go back to ``auto``."""
    found = next((each.base for each in app.snapshot().adapters if each.name == adapter), "")
    if not found or found == before:
        return gr.skip()
    return {base: found, **dict.fromkeys(base_settings.values(), "auto")}


def preferred_scale(app: AppState, name: str) -> Any:
    """Return the scale that an adapter's file prefers."""
    path = _path(app, name)
    return preferred_weight(path) if path else gr.skip()


def words_button(app: AppState, name: str | None) -> Any:
    """Show the button that adds the adapter's trigger words, if it has some."""
    words = _trigger_words(app, name)
    return gr.update(value=f"Add “{words}” to the prompt", visible=bool(words))


def add_words(app: AppState, prompt: str | None, name: str) -> str:
    """Put the adapter's trigger words in front of the prompt, unless it has them."""
    words, prompt = _trigger_words(app, name), (prompt or "").strip()
    return prompt if words.lower() in prompt.lower() else ", ".join(filter(None, (words, prompt)))


def describe_tags(app: AppState, rows: AdapterRows, prompt: gr.Textbox, values: Values) -> str:
    """Describe the adapters that the prompt names, with their scales, and what is wrong with them."""
    try:
        tags = parse_lora_tags(values[prompt] or "").scales
    except SdloraError as error:
        return page_html.note([str(error)], "bad")
    chosen = dict(rows.chosen(values))
    names = [adapter.name for adapter in app.snapshot().adapters]
    lines = []
    for name, scale in tags.items():
        numbers = lora_tag(name, scale).removeprefix(f"<lora:{name}:").removesuffix(">").replace(":", " and ")
        if name not in names:
            others = ", ".join(names) or "none yet"
            lines.append(f"{one_line(name, 60)}: there is no adapter of this name; there are: {others}")
        else:
            lines.append(f"{name}: {numbers} from the prompt{', not its slider' if name in chosen else ''}")
    return page_html.note(lines, "info" if tags.keys() <= set(names) else "bad")


def _path(app: AppState, name: str | None) -> Path | None:
    return next((adapter.path for adapter in app.snapshot().adapters if adapter.name == name), None)


def _trigger_words(app: AppState, name: str | None) -> str:
    path = _path(app, name)
    return trigger_words(path) if path else ""
