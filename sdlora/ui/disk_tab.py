"""The Disk tab of the library: what the data folder takes, and a way to free part of it for good."""

from dataclasses import dataclass
from functools import partial

import gradio as gr

from sdlora.api.storage import FREED, disk_usage, free_space
from sdlora.errors import SdloraError
from sdlora.formatting import format_bytes
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.library_html import facts
from sdlora.ui.listeners import HIDDEN, LAST, Values

OLD_DAYS = 30
"""Age in days from which things are freed at first."""


@dataclass(frozen=True)
class DiskTab:
    """Components that the handlers update."""

    usage: gr.HTML
    chosen: gr.CheckboxGroup
    free: gr.Button
    confirm: gr.Row
    message: gr.HTML


def build(app: AppState, tab: gr.Tab) -> None:
    """Lay the tab out and wire it; sizes are measured whenever it is chosen."""
    usage = gr.HTML(elem_id="disk-usage")
    chosen = gr.CheckboxGroup([], value=[], label="Free", info="Finished adapters always stay", elem_id="disk-free")
    days = gr.Slider(0, 365, OLD_DAYS, step=1, label="Only what is older than so many days", elem_id="disk-days")
    free = gr.Button("Free it", interactive=False, elem_id="disk-go")
    with gr.Row(visible=False) as confirm:
        really = gr.Button("Really free it? It does not come back", variant="stop", elem_id="disk-really")
        keep = gr.Button("Keep it", elem_id="disk-keep")
    message = gr.HTML(elem_id="disk-message")
    parts = DiskTab(usage, chosen, free, confirm, message)
    outputs, options = [usage, chosen, free, confirm], {**HIDDEN, "show_progress": "minimal"}
    gr.on([tab.select, days.release], partial(_show, app, parts), days, outputs, **options)
    chosen.change(lambda names: gr.update(interactive=bool(names)), chosen, free, **LAST)
    free.click(lambda: gr.update(visible=True), None, confirm, **HIDDEN)
    keep.click(lambda: gr.update(visible=False), None, confirm, **HIDDEN)
    really.click(partial(_free, app, parts), [chosen, days], [message, *outputs], **options)


def _show(app: AppState, tab: DiskTab, days: float) -> Values:
    shares = disk_usage(app.data_dir)
    old = {share.name: share.size for share in (disk_usage(app.data_dir, days) if days else shares)}
    rows = [(share.name.replace("-", " "), f"{format_bytes(share.size)}: {share.what}") for share in shares]
    choices = [
        (f"{share.name.replace('-', ' ')} ({format_bytes(old[share.name])})", share.name)
        for share in shares
        if share.freed
    ]
    return {
        tab.usage: facts(rows), tab.chosen: gr.update(choices=choices, value=[]),
        tab.free: gr.update(interactive=False), tab.confirm: gr.update(visible=False),
    }  # fmt: skip


def _free(app: AppState, tab: DiskTab, names: list[str], days: float) -> Values:
    try:
        freed = free_space(app.data_dir, [name for name in FREED if name in names], days)
        app.refresh()  # Checkpoints may have gone.
        message = page_html.note([f"{format_bytes(freed)} freed."], "good")
    except SdloraError as error:
        message = page_html.note([str(error)], "bad")
    return {tab.message: message, **_show(app, tab, days)}
