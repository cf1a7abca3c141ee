"""The Library tab: adapters and runs, which are opened, imported, deleted and brought back."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapter_jobs import import_adapters
from sdlora.api.adapters import last_preview
from sdlora.api.storage import size_of
from sdlora.api.training import Run, duplicate_run, list_runs
from sdlora.errors import SdloraError
from sdlora.formatting import format_bytes, pluralize
from sdlora.ui import (
    bake_panel,
    compare_runs_panel,
    disk_tab,
    file_evaluation_panel,
    library_html,
    page_html,
    tools_panel,
)
from sdlora.ui.adapter_detail import AdapterDetail, build_detail, inspect, show_adapter, wire_detail
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import EVERY, HIDDEN, LAST, PRIVATE, Changes, Values
from sdlora.ui.run_panel import RESUMABLE
from sdlora.ui.run_view import describe

SHOW_TOP = "() => document.querySelector('#library-top')?.scrollIntoView({block: 'nearest'})"
SHOW_DETAIL = "() => setTimeout(() => document.querySelector('#library-sheet')?.scrollIntoView({block: 'nearest'}), 50)"


FILE_ALONE = "no base: check the file alone"


@dataclass(frozen=True)
class LibraryTab:
    """Components that several parts of the tab update."""

    news: gr.HTML
    """Changes when there are other runs or adapters, and the lists have to be read."""
    message: gr.HTML
    really: gr.Button
    keep: gr.Button
    undo: gr.Button
    pending: gr.State
    """Target of a confirmed deletion: ``{"what": "run", "name": ..., "checkpoint": ...}``."""
    deleted: gr.State
    """Folder in the trash of what was deleted last."""
    file: gr.DownloadButton
    search: gr.Textbox
    adapters: gr.HTML
    runs: gr.HTML
    trash: gr.HTML
    empty: gr.Button
    opened: gr.State
    """Name of the run that the Train tab is to show."""
    evaluates: gr.State
    """Whether it is also to unfold which checkpoint to take."""
    on_open: Any
    """Event after which it shows that run."""

    @property
    def confirm(self) -> list[Block]:
        """Components that ask whether to delete, and offer Undo."""
        return [self.message, self.really, self.keep, self.undo, self.pending, self.deleted]

    @property
    def lists(self) -> list[Block]:
        return [self.adapters, self.runs, self.trash, self.empty]

    def answer(self, message: str = "") -> Values:
        """Show ``message``, with no question and nothing to undo."""
        hidden: Values = dict.fromkeys((self.really, self.keep, self.undo), gr.update(visible=False))
        return {self.message: message, **hidden, self.pending: {}, self.deleted: ""}

    def refuse(self, error: SdloraError) -> Values:
        return self.answer(page_html.note([str(error)], "bad"))


def build(app: AppState, tab: gr.Tab, tabs: gr.Tabs, news: gr.HTML) -> LibraryTab:
    """Lay the tab out and wire it; its lists are read whenever it is chosen or ``news`` changes.

    ``news`` stands outside the tab: Gradio (6.31) tells nobody of a change in a tab that was never shown.
    """
    changes = [tab.select, news.change]
    message = gr.HTML(elem_id="library-top")
    with gr.Row():
        really = gr.Button("Really delete?", variant="stop", visible=False, elem_id="really-delete")
        keep = gr.Button("Keep it", visible=False, elem_id="keep-it")
        undo = gr.Button("Undo", visible=False, elem_id="undo-delete")
    file = gr.DownloadButton("File", elem_id="library-file", elem_classes="behind")
    search = gr.Textbox("", label="Search", placeholder="a name or a trigger word", elem_id="library-search")
    with gr.Tabs(elem_id="library-tabs"):
        with gr.Tab("Adapters"):
            detail = build_detail(app)
            adapters = _clickable("library-adapters")
        with gr.Tab("Runs"):
            compare_runs_panel.build(app, changes)
            runs = _clickable("library-runs")
        with gr.Tab("Import"):
            imported = _build_import(app, tab)
        with gr.Tab("Tools"):
            made = tools_panel.build(app, tab, changes)
            with gr.Accordion("Bake adapters into a model", open=False, elem_id="bake"):
                bake_panel.build(app, tab, changes, file)
        with gr.Tab("Trash"):
            trash = _clickable("library-trash")
            empty = gr.Button("Empty trash", variant="stop", interactive=False, elem_id="empty-trash")
        with gr.Tab("Disk") as disk:
            disk_tab.build(app, disk)
    library = LibraryTab(
        news, message, really, keep, undo, gr.State({}), gr.State(""), file, search, adapters, runs, trash, empty,
        gr.State(""), gr.State(False), None,
    )  # fmt: skip
    refresh: dict[str, Any] = {
        "fn": partial(_lists, app), "inputs": search, "outputs": library.lists, **HIDDEN,
    }  # fmt: skip
    gr.on(changes, **{**refresh, **EVERY})
    search.change(**{**refresh, **LAST})  # Not `input`, which misses pasted text.
    _wire_detail(app, library, detail)
    _wire_trash(app, library, detail, refresh)
    for event in (imported, *made):
        event.then(**refresh)
    return replace(library, on_open=_wire_runs(app, library, tabs, refresh))


def refresh(app: AppState, library: LibraryTab, changes: Changes) -> None:
    """Let the lists be read if there are other runs or adapters than this visitor's page has seen."""
    now = app.snapshot()
    there = now.runs, tuple(adapter.name for adapter in now.adapters)
    changes.add("library", library.news, there, lambda: str(time.monotonic_ns()))


def _clickable(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, js_on_load=library_html.ACT)


def _build_import(app: AppState, tab: gr.Tab) -> Any:
    """Lay out the drop zone and its report; return the event after which the library may have more adapters."""
    base = gr.Dropdown(
        [*app.base_choices(), FILE_ALONE], value=app.base_choices()[0][1], label="Check against",
        info="the base model that you want to use it with", allow_custom_value=True, elem_id="import-base",
    )  # fmt: skip
    drop = gr.File(file_count="multiple", label="Adapter files (.safetensors)", height=150, elem_id="import-files")
    report = gr.HTML(elem_id="import-report")
    tab.select(lambda: gr.update(choices=[*app.base_choices(), FILE_ALONE]), None, base, **HIDDEN)
    return drop.upload(partial(import_files, app), [drop, base], [drop, report], **HIDDEN)


def import_files(app: AppState, files: Any, base: str) -> Iterator[list[Any]]:
    """Check dropped files one by one and keep the sound ones; yields values of the drop zone and the report."""
    paths, results = [Path(file) for file in files or ()], []
    yield [gr.skip(), page_html.progress_note(f"Checking {paths[0].name if paths else 'nothing'}", None)]
    try:
        for result in import_adapters(app.library, paths, "" if base == FILE_ALONE else base or ""):
            results.append(result)
            report, done = library_html.import_report(results), len(results)
            if done < len(paths):
                report += page_html.progress_note(f"Checking {paths[done].name}", done / len(paths))
            yield [gr.skip(), report]
        app.refresh()
        yield [None, gr.skip()]
    except SdloraError as error:
        yield [None, library_html.import_report(results) + page_html.note([str(error)], "bad")]


def _lists(app: AppState, search: str) -> list[Any]:
    """Return all lists, after deleting what has been in the trash for too long."""
    library, search = app.library, search or ""
    library.trash.forget_old()
    found = library.adapters(search)
    shown = [(entry, library.image(entry)) for entry in found[: library_html.SHOWN]]
    words = search.casefold().split()
    runs = [run for run in list_runs(app.data_dir) if all(word in run.name.casefold() for word in words)]
    items = library.trash.items()
    size = format_bytes(sum(item.size for item in items))
    label = f"Empty trash ({len(items)}, {size})" if items else "Empty trash"
    return [
        library_html.adapters(shown, len(found), search),
        library_html.runs([_describe(app, run) for run in runs[: library_html.SHOWN]], len(runs), search),
        library_html.trash(items),
        gr.update(value=label, interactive=bool(items)),
    ]


def _describe(app: AppState, run: Run) -> tuple[str, str, str, Path | None, str]:
    """Return a run's name, state, date, image, and the word for going on, "" if it cannot."""
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


def _wire_detail(app: AppState, library: LibraryTab, detail: AdapterDetail) -> None:
    def show(event: gr.EventData) -> Values:  # Gradio finds the event by its annotation.
        return show_adapter(app, detail, str(event.name))

    chosen = [detail.name, detail.checkpoint]
    opened = library.adapters.click(show, None, detail.opened, **HIDDEN)
    evaluation = detail.evaluation
    offered = opened.then(
        partial(file_evaluation_panel.show, app, evaluation), detail.name, file_evaluation_panel.outputs(evaluation),
        **HIDDEN,
    )  # fmt: skip
    offered.then(None, js=SHOW_DETAIL, **PRIVATE).then(partial(inspect, app), chosen, detail.inspection, **HIDDEN)
    wire_detail(app, detail, library.file)
    detail.delete.click(partial(_ask_adapter, library), chosen, library.confirm, **HIDDEN).then(
        None, js=SHOW_TOP, **PRIVATE
    )


def _ask_adapter(library: LibraryTab, name: str, checkpoint: str) -> Values:
    pending = {"what": "checkpoint" if checkpoint else "adapter", "name": name, "checkpoint": checkpoint or ""}
    return _ask(library, pending, f"{name}, step {int(Path(checkpoint).stem)}" if checkpoint else name)


def _ask(library: LibraryTab, pending: dict[str, str], name: str) -> Values:
    """Ask whether to delete; a second click does it."""
    more = " The whole run goes: settings, pictures, checkpoints." if pending["what"] == "run" else ""
    return {
        library.message: page_html.note([f"{name} would be moved to the trash.{more}"]),
        library.really: gr.update(value=f"Really delete {name}?", visible=True),
        library.keep: gr.update(visible=True),
        library.undo: gr.update(visible=False),
        library.pending: pending,
    }


def _wire_trash(app: AppState, library: LibraryTab, detail: AdapterDetail, refresh: dict[str, Any]) -> None:
    def undo(event: gr.EventData) -> Values:  # Gradio finds the event by its annotation.
        return _undo(app, library, str(event.name))

    confirm = library.confirm
    library.really.click(
        partial(_delete, app, library, detail), library.pending, [*confirm, detail.panel], **HIDDEN
    ).then(**refresh)
    library.keep.click(library.answer, None, confirm, **HIDDEN)
    library.undo.click(partial(_undo, app, library), library.deleted, confirm, **HIDDEN).then(**refresh)
    library.trash.click(undo, None, confirm, **HIDDEN).then(**refresh)
    library.empty.click(partial(_empty, app, library), None, confirm, **HIDDEN).then(**refresh)


def _delete(app: AppState, library: LibraryTab, detail: AdapterDetail, pending: dict[str, str]) -> Values:
    """Move what was confirmed to the trash, and offer Undo."""
    try:
        name = pending.get("name", "")
        if pending.get("what") == "run":
            item = app.library.delete_run(name)
        elif pending.get("what") == "checkpoint":
            item = app.library.delete_checkpoint(name, pending["checkpoint"])
        else:
            item = app.library.delete_adapter(name)
    except SdloraError as error:
        return library.refuse(error)
    app.refresh()
    return {
        **library.answer(page_html.note([f"{_capitalize(item.what)} is in the trash."], "good")),
        library.undo: gr.update(visible=True),
        library.deleted: item.folder.name,
        detail.panel: gr.update(visible=False),
    }


def _undo(app: AppState, library: LibraryTab, item: str) -> Values:
    try:
        restored = app.library.undo(item)
    except SdloraError as error:
        return library.refuse(error)
    app.refresh()
    return library.answer(page_html.note([f"{_capitalize(restored.what)} is back."], "good"))


def _capitalize(words: str) -> str:
    return words[0].upper() + words[1:]


def _empty(app: AppState, library: LibraryTab) -> Values:
    count = app.library.trash.empty()
    return library.answer(page_html.note([f"{pluralize(count, 'thing')} deleted for good."], "good"))


def _wire_runs(app: AppState, library: LibraryTab, tabs: gr.Tabs, refresh: dict[str, Any]) -> Any:
    def act(event: gr.EventData) -> Values:  # Gradio finds the event by its annotation.
        return _act(app, library, tabs, str(event.act), str(event.name))

    done = library.runs.click(act, None, [library.opened, library.evaluates, tabs, *library.confirm], **HIDDEN)
    done.then(None, js=SHOW_TOP, **PRIVATE).then(**refresh)
    return done


def _act(app: AppState, library: LibraryTab, tabs: gr.Tabs, act: str, name: str) -> Values:
    """Open, resume, duplicate, or ask whether to delete a run."""
    try:
        run = app.library.run(name)
        if act == "delete":
            return {library.opened: "", **_ask(library, {"what": "run", "name": name}, name)}
        if act == "resume":
            app.start(run)
        if act == "duplicate":
            other = duplicate_run(run)
            app.refresh()
            message = page_html.note([f"{other.name} has the settings of {name}; Start trains it."], "good")
            return {library.opened: other.name, **library.answer(message)}
        shown = {library.opened: name, library.evaluates: act == "evaluate", tabs: gr.Tabs(selected="train")}
        return {**shown, **library.answer()}
    except SdloraError as error:
        return {library.opened: "", **library.refuse(error)}
