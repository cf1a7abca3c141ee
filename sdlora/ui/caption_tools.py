"""Changes to all captions of a project, or to the project as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gradio as gr
from gradio.blocks import Block

from sdlora.data.projects import Project, list_projects
from sdlora.errors import SdloraError
from sdlora.formatting import pluralize
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, PRIVATE, Values
from sdlora.ui.page_html import note
from sdlora.ui.project_panel import ImagesTab, open_latest, project_values

PRESS_REPLACE = "() => document.querySelector('#replace-all').click()"


@dataclass(frozen=True)
class CaptionTools:
    """Components of the fold below the cards."""

    add_trigger: gr.Button
    find: gr.Textbox
    replacement: gr.Textbox
    replace: gr.Button
    delete: gr.Button
    confirm: gr.Row
    delete_now: gr.Button
    keep: gr.Button
    restore: gr.Button


def build() -> CaptionTools:
    """Lay the tools out."""
    with gr.Accordion("All captions, and the project", open=False, elem_id="picture-tools"):
        add_trigger = gr.Button("Add the trigger word to all captions", size="sm", elem_id="add-trigger")
        with gr.Row(equal_height=True):
            find = gr.Textbox("", label="Find in captions", scale=2, min_width=140)
            replacement = gr.Textbox("", label="Replace by", scale=2, min_width=140)
            replace = gr.Button("Replace in all", size="sm", scale=1, min_width=120, elem_id="replace-all")
        delete = gr.Button("Delete this project", size="sm", variant="stop", elem_id="delete-project")
        with gr.Row(visible=False) as confirm:
            delete_now = gr.Button("Yes, delete it", size="sm", variant="stop", elem_id="delete-now")
            keep = gr.Button("Keep it", size="sm", elem_id="keep-project")
    restore = gr.Button(visible=False, size="sm", elem_id="restore-project")
    return CaptionTools(add_trigger, find, replacement, replace, delete, confirm, delete_now, keep, restore)


def wire(app: AppState, tab: ImagesTab, tools: CaptionTools) -> None:
    """Wire the tools, and the tab's Undo."""
    inputs: set[Block] = {tab.project, tab.images_version, tab.captions_version, tools.find, tools.replacement}
    outputs = [tab.message, tab.images_version, tab.captions_version]
    for button, change in (
        (tools.add_trigger, _add_trigger), (tools.replace, partial(_replace, tools)), (tab.undo, _undo),
    ):  # fmt: skip
        button.click(partial(_change, app, tab, change), inputs, outputs, **PRIVATE)
    gr.on([tools.find.submit, tools.replacement.submit], None, None, None, js=PRESS_REPLACE, **PRIVATE)
    tools.delete.click(lambda: gr.update(visible=True), None, tools.confirm, **HIDDEN)
    tools.keep.click(lambda: gr.update(visible=False), None, tools.confirm, **HIDDEN)
    moved = [
        tab.project, tab.open_project, *tab.words, tab.message, tools.confirm, tools.restore, tab.deleted,
        tab.images_version,
    ]  # fmt: skip
    for button, handler, target in ((tools.delete_now, _delete, tab.project), (tools.restore, _restore, tab.deleted)):
        button.click(
            partial(handler, app, tab, tools), [target, tab.images_version], moved, show_progress_on=tab.message,
            **PRIVATE,
        )  # fmt: skip


def _change(app: AppState, tab: ImagesTab, change: Callable[[Project, Values], str], values: Values) -> Values:
    """Change captions or pictures, report it, and have the cards read them again."""
    try:
        message = change(Project(app.data_dir, values[tab.project] or ""), values)
        versions: Values = {version: values[version] + 1 for version in (tab.images_version, tab.captions_version)}
        return {tab.message: note([message]), **versions}
    except SdloraError as error:
        return {tab.message: note([str(error)], "bad")}


def _add_trigger(project: Project, values: Values) -> str:
    number = project.add_trigger()
    return f"Changed {pluralize(number, 'caption')}." if number else "Every caption has the trigger already."


def _replace(tools: CaptionTools, project: Project, values: Values) -> str:
    number = project.replace(values[tools.find], values[tools.replacement])
    return f"Changed {pluralize(number, 'caption')}." if number else f"No caption contains “{values[tools.find]}”."


def _undo(project: Project, values: Values) -> str:
    undone = project.undo()
    return f"Undone: {undone}." if undone else "There is nothing to undo."


def _delete(app: AppState, tab: ImagesTab, tools: CaptionTools, name: str, version: int) -> Values:
    """Move the project to the trash, unless a training uses it, and open the next one."""
    try:
        item = app.library.delete_project(name or "")
        return {
            **open_latest(app, tab),
            tab.message: note([f"{item.name} is in the trash and stays there for thirty days."]),
            tools.confirm: gr.update(visible=False),
            tools.restore: gr.update(visible=True, value=f"Bring {item.name} back"),
            tab.deleted: item.folder.name,
            tab.images_version: version + 1,
        }
    except SdloraError as error:
        return {tab.message: note([str(error)], "bad"), tools.confirm: gr.update(visible=False)}


def _restore(app: AppState, tab: ImagesTab, tools: CaptionTools, item: str, version: int) -> Values:
    """Bring the deleted project back and open it."""
    try:
        trash = app.library.trash
        (folder,) = trash.restore(trash.find(item))
        names = [project.name for project in list_projects(app.data_dir)]
        return {
            tab.project: gr.update(choices=names, value=folder.name),
            **project_values(app, tab, folder.name),
            tab.message: note([f"{folder.name} is back."]),
            tools.restore: gr.update(visible=False),
            tab.deleted: "",
            tab.images_version: version + 1,
        }
    except SdloraError as error:
        return {tab.message: note([str(error)], "bad")}
