"""What the data folder takes on the disk, and a part of it freed. What is freed does not come back."""

from functools import partial
from typing import Any

import gradio as gr

from sdlora.api.storage import FREED, disk_usage, free_space
from sdlora.errors import SdloraError
from sdlora.formatting import format_bytes
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.library_html import facts
from sdlora.ui.listeners import HIDDEN, LAST

OLD_DAYS = 30


def build(app: AppState, tab: gr.Tab) -> None:
    """Lay it out and wire it; it is looked through whenever the tab is chosen."""
    told = gr.HTML(elem_id="disk-usage")
    chosen = gr.CheckboxGroup([], value=[], label="Free", info="Finished adapters always stay", elem_id="disk-free")
    days = gr.Slider(0, 365, OLD_DAYS, step=1, label="Only what is older than so many days", elem_id="disk-days")
    free = gr.Button("Free it", interactive=False, elem_id="disk-go")
    with gr.Row(visible=False) as sure:
        really = gr.Button("Really free it? It does not come back", variant="stop", elem_id="disk-really")
        keep = gr.Button("Keep it", elem_id="disk-keep")
    message = gr.HTML(elem_id="disk-message")
    shown, all_of_it = [told, chosen, free, sure], [message, told, chosen, free, sure]
    gr.on([tab.select, days.release], partial(_show, app), days, shown, **{**HIDDEN, "show_progress": "minimal"})
    chosen.change(lambda names: gr.update(interactive=bool(names)), chosen, free, **LAST)
    free.click(lambda: gr.update(visible=True), None, sure, **HIDDEN)
    keep.click(lambda: gr.update(visible=False), None, sure, **HIDDEN)
    really.click(partial(_free, app), [chosen, days], all_of_it, **{**HIDDEN, "show_progress": "minimal"})


def _show(app: AppState, days: float) -> list[Any]:
    shares = disk_usage(app.data_dir, days)
    rows = [(share.name.replace("-", " "), f"{format_bytes(share.size)}: {share.what}") for share in shares]
    choices = [
        (f"{share.name.replace('-', ' ')} ({format_bytes(share.size)})", share.name) for share in shares if share.freed
    ]
    return [facts(rows), gr.update(choices=choices, value=[]), gr.update(interactive=False), gr.update(visible=False)]


def _free(app: AppState, names: list[str], days: float) -> list[Any]:
    try:
        freed = free_space(app.data_dir, [name for name in FREED if name in names], days)
        said = page_html.note([f"{format_bytes(freed)} freed."], "good")
    except SdloraError as error:
        said = page_html.note([str(error)], "bad")
    return [said, *_show(app, days)]
