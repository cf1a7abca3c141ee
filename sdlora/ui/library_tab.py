"""The fourth tab: adapters and runs, opened, deleted and brought back. ``sheet`` has one adapter, ``intake``
import, ``tools`` and ``baking`` what is made of them, ``room`` what all of it takes on the disk.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.adapters import last_preview
from sdlora.api.storage import KEPT_DAYS, size_of
from sdlora.api.training import Run, duplicate_run, list_runs
from sdlora.errors import SdloraError
from sdlora.formatting import format_bytes
from sdlora.ui import bake_panel, disk_tab, import_tab, library_html, page_html, tools_panel
from sdlora.ui.adapter_detail import AdapterDetail, build_detail, inspect, show_adapter, wire_detail
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, LAST, PRIVATE
from sdlora.ui.run_panel import RESUMABLE
from sdlora.ui.run_view import describe

SHOW_TOP = "() => document.querySelector('#library-top')?.scrollIntoView({block: 'nearest'})"
SHOW_SHEET = "() => setTimeout(() => document.querySelector('#library-sheet')?.scrollIntoView({block: 'nearest'}), 50)"


@dataclass(frozen=True)
class _SharedParts:
    """What every part of the tab may change."""

    message: gr.HTML
    really: gr.Button
    keep: gr.Button
    undo: gr.Button
    pending: gr.State
    """What is to be deleted when that is confirmed: ``{"what": "run", "name": ..., "checkpoint": ...}``."""
    undoable: gr.State
    """The trash's folder of what was deleted last."""
    file: gr.DownloadButton
    search: gr.Textbox
    adapters: gr.HTML
    runs: gr.HTML
    trash: gr.HTML
    empty: gr.Button

    @property
    def confirm(self) -> list[Any]:
        return [self.message, self.really, self.keep, self.undo, self.pending, self.undoable]

    @property
    def lists(self) -> list[Any]:
        return [self.adapters, self.runs, self.trash, self.empty]


@dataclass(frozen=True)
class LibraryTab:
    """What ``page`` wires: the run to open, and the event after which to open it."""

    opened: gr.State
    on_open: Any


def build(app: AppState, tab: gr.Tab, tabs: gr.Tabs) -> LibraryTab:
    """Lay the tab out and wire it; its lists are read whenever it is chosen."""
    message = gr.HTML(elem_id="library-top")
    with gr.Row():
        really = gr.Button("Really delete?", variant="stop", visible=False, elem_id="really-delete")
        keep = gr.Button("Keep it", visible=False, elem_id="keep-it")
        undo = gr.Button("Undo", visible=False, elem_id="undo-delete")
    file = gr.DownloadButton("File", elem_id="library-file", elem_classes="behind")
    search = gr.Textbox("", label="Search", placeholder="a name or a trigger word", elem_id="library-search")
    with gr.Tabs(elem_id="library-tabs"):
        with gr.Tab("Adapters"):
            sheet = build_detail()
            adapters = _clickable("library-adapters")
        with gr.Tab("Runs"):
            runs = _clickable("library-runs")
        with gr.Tab("Import"):
            taken = import_tab.build_import(app, tab)
        with gr.Tab("Tools"):
            made = tools_panel.build(app, tab)
            with gr.Accordion("Bake adapters into a model", open=False, elem_id="bake"):
                bake_panel.build(app, tab, file)
        with gr.Tab("Trash"):
            trash = _clickable("library-trash")
            empty = gr.Button("Empty trash", variant="stop", interactive=False, elem_id="empty-trash")
        with gr.Tab("Disk") as disk:
            disk_tab.build(app, disk)
    shared = _SharedParts(
        message, really, keep, undo, gr.State({}), gr.State(""), file, search, adapters, runs, trash, empty
    )
    _wire_lists(app, shared, tab)
    _wire_sheet(app, shared, sheet)
    _wire_trash(app, shared, sheet)
    for event in (taken, *made):
        event.then(partial(_lists, app), search, shared.lists, **HIDDEN)
    return _wire_runs(app, shared, tabs)


def _clickable(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, js_on_load=library_html.ACT)


def _wire_lists(app: AppState, shared: _SharedParts, tab: gr.Tab) -> None:
    tab.select(partial(_lists, app), shared.search, shared.lists, **HIDDEN)
    # Not `input`: it misses text that was pasted.
    shared.search.change(
        partial(_lists, app), shared.search, shared.lists, **LAST
    )  # fmt: skip


def _lists(app: AppState, search: str) -> list[Any]:
    """All lists as they are now; what has lain in the trash too long goes, however long the page has been open."""
    library, search = app.library, search or ""
    library.trash.empty(KEPT_DAYS)
    found = library.adapters(search)
    shown = [(entry, library.picture(entry)) for entry in found[: library_html.SHOWN]]
    words = search.casefold().split()
    runs = [run for run in list_runs(app.data_dir) if all(word in run.name.casefold() for word in words)]
    items = library.trash.items()
    size = format_bytes(sum(item.size for item in items))
    label = f"Empty trash ({len(items)}, {size})" if items else "Empty trash"
    return [
        library_html.adapters(shown, len(found), search),
        library_html.runs([_told(app, run) for run in runs[: library_html.SHOWN]], len(runs), search),
        library_html.trash(items),
        gr.update(value=label, interactive=bool(items)),
    ]


def _told(app: AppState, run: Run) -> tuple[str, str, str, Path | None, str]:
    """A run's name, where it stands, its date, its picture, and the word for going on, if it can."""
    view, state = app.run_view(run), app.queue.state(run)
    try:
        words = describe(view, state) if run.config else ""
    except SdloraError as error:
        return run.name, str(error), "", last_preview(run), ""
    date = " · ".join(
        [
            Path(run.config.model.base).name,
            library_html.day(run.config_file.stat().st_mtime),
            format_bytes(size_of(run.folder)),
        ]
    )
    go_on = "Start" if state == "new" else "Resume" if state in RESUMABLE else ""
    return run.name, words, date, last_preview(run), go_on


def _wire_sheet(app: AppState, shared: _SharedParts, sheet: AdapterDetail) -> None:
    def show(event: gr.EventData) -> list[Any]:
        return show_adapter(app, str(event.name))

    shared.adapters.click(show, None, sheet.opened, **HIDDEN).then(None, js=SHOW_SHEET, **PRIVATE).then(
        partial(inspect, app), [sheet.name, sheet.checkpoint], sheet.inspection, **HIDDEN
    )
    wire_detail(app, sheet, shared.file)
    chosen = [sheet.name, sheet.checkpoint]
    sheet.remove.click(_ask_adapter, chosen, shared.confirm, **HIDDEN).then(None, js=SHOW_TOP, **PRIVATE)


def _ask_adapter(name: str, checkpoint: str) -> list[Any]:
    what = {"what": "checkpoint" if checkpoint else "adapter", "name": name, "checkpoint": checkpoint or ""}
    return _ask(what, f"{name}, step {int(Path(checkpoint).stem)}" if checkpoint else name)


def _ask(pending: dict[str, str], name: str) -> list[Any]:
    """Ask whether to delete. A second click does it."""
    more = " The whole run goes: settings, pictures, checkpoints." if pending["what"] == "run" else ""
    text = f"{name} would be moved to the trash.{more}"
    return [
        page_html.note([text]), gr.update(value=f"Really delete {name}?", visible=True), gr.update(visible=True),
        gr.update(visible=False), pending, gr.skip(),
    ]  # fmt: skip


def _wire_trash(app: AppState, shared: _SharedParts, sheet: AdapterDetail) -> None:
    listing: dict[str, Any] = {"fn": partial(_lists, app), "inputs": shared.search, "outputs": shared.lists, **HIDDEN}

    def undo(event: gr.EventData) -> list[Any]:
        return _undo(app, str(event.name))

    shared.really.click(partial(_delete, app), shared.pending, [*shared.confirm, sheet.whole], **HIDDEN).then(**listing)
    shared.keep.click(_quiet, None, shared.confirm, **HIDDEN)
    shared.undo.click(partial(_undo, app), shared.undoable, shared.confirm, **HIDDEN).then(**listing)
    shared.trash.click(undo, None, shared.confirm, **HIDDEN).then(**listing)
    shared.empty.click(partial(_empty, app), None, shared.confirm, **HIDDEN).then(**listing)


def _quiet(lines: str = "") -> list[Any]:
    """No question, and nothing to undo."""
    return [lines, *(gr.update(visible=False) for _ in range(3)), {}, ""]


def _delete(app: AppState, pending: dict[str, str]) -> list[Any]:
    library = app.library
    try:
        name = pending.get("name", "")
        if pending.get("what") == "run":
            item = library.delete_run(name)
        elif pending.get("what") == "checkpoint":
            item = library.delete_checkpoint(name, pending["checkpoint"])
        else:
            item = library.delete_adapter(name)
    except SdloraError as error:
        return [*_quiet(page_html.note([str(error)], "bad")), gr.skip()]
    app.refresh()
    said = page_html.note([f"{item.what[0].upper()}{item.what[1:]} is in the trash."], "good")
    question = [gr.update(visible=False), gr.update(visible=False), gr.update(visible=True)]
    return [said, *question, {}, item.folder.name, gr.update(visible=False)]


def _undo(app: AppState, item: str) -> list[Any]:
    try:
        back = app.library.undo(item)
    except SdloraError as error:
        return _quiet(page_html.note([str(error)], "bad"))
    app.refresh()
    return _quiet(page_html.note([f"{back.what[0].upper()}{back.what[1:]} is back."], "good"))


def _empty(app: AppState) -> list[Any]:
    count = app.library.trash.empty()
    return _quiet(page_html.note([f"{count} thing{'s' if count != 1 else ''} deleted for good."], "good"))


def _wire_runs(app: AppState, shared: _SharedParts, tabs: gr.Tabs) -> LibraryTab:
    opened = gr.State("")

    def act(event: gr.EventData) -> list[Any]:
        return _act(app, str(event.act), str(event.name))

    done = shared.runs.click(act, None, [opened, tabs, *shared.confirm], **HIDDEN)
    done.then(None, js=SHOW_TOP, **PRIVATE).then(partial(_lists, app), shared.search, shared.lists, **HIDDEN)
    return LibraryTab(opened, done)


def _act(app: AppState, act: str, name: str) -> list[Any]:
    """Open, resume, duplicate, or ask whether to delete a run."""
    here: list[Any] = ["", gr.skip()]
    train = gr.Tabs(selected="train")
    try:
        run = app.library.run(name)
        if act == "delete":
            return [*here, *_ask({"what": "run", "name": name}, name)]
        if act == "resume":
            app.start(run)
        if act == "duplicate":
            other = duplicate_run(run)
            app.refresh()
            said = f"{other.name} has the settings of {name}; Start trains it."
            return [other.name, gr.skip(), *_quiet(page_html.note([said], "good"))]
        return [name, train, *_quiet()]
    except SdloraError as error:
        return [*here, *_quiet(page_html.note([str(error)], "bad"))]
