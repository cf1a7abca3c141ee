"""The first tab: a project, what its pictures show, a field to drop them in, what to mend, and a card a picture."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from sdlora.api.models import native_size
from sdlora.data import doctor
from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.data.step_heuristics import Kind
from sdlora.data.uploads import FolderWords, UploadedFile
from sdlora.errors import SdloraError
from sdlora.formatting import pluralize
from sdlora.ui import findings_html
from sdlora.ui.app_state import AppState
from sdlora.ui.build_config import suggested_words
from sdlora.ui.caption_cards import cards
from sdlora.ui.event_options import EVERY, HIDDEN, PRIVATE
from sdlora.ui.page_html import note

FIRST = "mystyle"
"""What the first project is called until it is called otherwise."""
REMARKS = 12
"""Sentences on what was not taken, until they are only counted."""
KINDS: list[tuple[str, Kind]] = [("A style", "style"), ("A subject", "subject")]
WITH_PATHS = "(files, paths, ...rest) => [files, JSON.stringify(window.sdloraFolder || []), ...rest]"
"""Gradio keeps a file's name alone; the page's script remembers the folder that it was chosen in."""

PRESS_REPLACE = "() => document.querySelector('#replace-all').click()"
LIVE = gr.Progress()
"""As a default, it has Gradio show what a handler tells it."""


@dataclass(frozen=True)
class ImagesTab:
    """The components that other tabs need."""

    name: gr.Dropdown
    kind: gr.Radio
    trigger: gr.Textbox
    class_name: gr.Textbox
    opened: gr.State
    """The project whose words are filled in: changes when another one is chosen, and only then."""
    version: gr.State
    """Changes whenever the project's pictures do."""
    base: gr.State
    """The base model that the pictures are judged for; another tab may set it."""
    train: gr.Button
    """Train on these pictures: wired by the page."""
    refused: gr.HTML
    """Why that cannot be."""

    @property
    def about(self) -> list[Any]:
        return [self.kind, self.trigger, self.class_name]


@dataclass(frozen=True)
class _TabParts:
    """The components that only this tab needs."""

    status: gr.HTML
    remarks: gr.HTML
    found: gr.HTML
    undo: gr.Button
    edition: gr.State
    """Changes whenever captions did other than by hand, so that the cards read them again."""
    touched: gr.State
    """Changes whenever a caption or a word did."""
    deleted: gr.State
    """Where in the trash the project lies that was deleted last."""


def build(app: AppState, demo: gr.Blocks) -> ImagesTab:
    """Lay the tab out and wire it."""
    with gr.Row(equal_height=True):
        name = gr.Dropdown(  # Open once the page knows its projects: its answer would undo an earlier choice.
            label="Project", allow_custom_value=True, elem_id="project", info="Choose one, or type a new name", scale=2,
            interactive=False,
        )  # fmt: skip
        kind = gr.Radio(KINDS, value="style", label="What is it?", info="A look, or one thing or person", scale=2)
        trigger = gr.Textbox("", label="Trigger word", info="The word that will call it", scale=2)
        class_name = gr.Textbox("", label="Kind of subject", info="Such as cat or person", visible=False, scale=2)
    drop = gr.File(
        file_count="multiple", label="Pictures, captions (.txt) or zip files", height=150, elem_id="drop-files",
        elem_classes="drop",
    )  # fmt: skip
    folder = gr.UploadButton("or choose a folder", file_count="directory", size="sm", elem_id="drop-folder")
    paths = gr.Textbox("", visible=False)
    offer = gr.Button(visible=False, size="sm", elem_id="use-words")
    offered = gr.State(None)
    inner = _TabParts(
        gr.HTML(elem_id="pictures-status"), gr.HTML(elem_id="pictures-remarks"), gr.HTML(elem_id="pictures-findings"),
        gr.Button("Undo", visible=False, size="sm", elem_id="undo-pictures"), gr.State(0), gr.State(0),
        gr.State(""),
    )  # fmt: skip
    opened, version, base = gr.State(""), gr.State(0), gr.State("pocket")
    place = gr.Column()
    tools = _tools()
    train = gr.Button("Train on these pictures", variant="primary", size="lg", elem_id="train-these")
    tab = ImagesTab(
        name, kind, trigger, class_name, opened, version, base, train, gr.HTML(elem_id="train-these-message")
    )

    _wire_words(app, demo, tab, inner)
    added = [drop, folder, inner.remarks, version, offer, offered, *tab.about]
    taken = {**PRIVATE, "show_progress_on": [drop, inner.remarks]}
    drop.upload(partial(_add, app), [drop, paths, name, *tab.about, version], added, **taken)
    folder.upload(partial(_add, app), [folder, paths, name, *tab.about, version], added, js=WITH_PATHS, **taken)
    offer.click(_use, [offered, *tab.about], [offer, *tab.about], **HIDDEN)
    _wire_tools(app, tab, inner, tools)
    with place:
        # One at a time: Gradio trips over two renders of one visitor.
        changed = [opened.change, version.change]
        gr.render([name, version, inner.edition], changed, show_progress="hidden", trigger_mode="always_last")(
            partial(cards, app.data_dir, version, inner.touched)
        )
    return tab


@dataclass(frozen=True)
class _CaptionTools:
    """What is done to all captions, or to the project as a whole."""

    add_trigger: gr.Button
    find: gr.Textbox
    put: gr.Textbox
    replace: gr.Button
    delete: gr.Button
    sure: gr.Row
    delete_now: gr.Button
    keep: gr.Button
    restore: gr.Button


def _tools() -> _CaptionTools:
    with gr.Accordion("All captions, and the project", open=False, elem_id="picture-tools"):
        add_trigger = gr.Button("Add the trigger word to all captions", size="sm", elem_id="add-trigger")
        with gr.Row(equal_height=True):
            find = gr.Textbox("", label="Find in captions", scale=2, min_width=140)
            put = gr.Textbox("", label="Replace by", scale=2, min_width=140)
            replace = gr.Button("Replace in all", size="sm", scale=1, min_width=120, elem_id="replace-all")
        delete = gr.Button("Delete this project", size="sm", variant="stop", elem_id="delete-project")
        with gr.Row(visible=False) as sure:
            delete_now = gr.Button("Yes, delete it", size="sm", variant="stop", elem_id="delete-now")
            keep = gr.Button("Keep it", size="sm", elem_id="keep-project")
    restore = gr.Button(visible=False, size="sm", elem_id="restore-project")
    return _CaptionTools(add_trigger, find, put, replace, delete, sure, delete_now, keep, restore)


def _wire_words(app: AppState, demo: gr.Blocks, tab: ImagesTab, inner: _TabParts) -> None:
    """What the project is called, what its pictures show, and what is said of them after every change."""
    opened = [tab.opened, *tab.about]
    demo.load(partial(_first, app), None, [tab.name, *opened], **HIDDEN)
    tab.name.change(partial(_open, app), [tab.name, tab.opened], [*opened, inner.remarks], **HIDDEN)
    tab.kind.input(partial(_retell, app), [tab.name, *tab.about], tab.about, **HIDDEN)
    for field in (tab.trigger, tab.class_name):
        told = [inner.remarks, inner.touched]
        field.change(partial(_tell, app), [tab.name, *tab.about, inner.touched], told, **EVERY)
    changed = [tab.opened.change, tab.base.change, tab.version.change, inner.touched.change]
    gr.on(changed, partial(_status, app), tab.name, [inner.status, inner.undo], **EVERY).then(
        partial(_check, app), [tab.name, tab.base], inner.found, **{**HIDDEN, "show_progress": "minimal"}
    )


def _wire_tools(app: AppState, tab: ImagesTab, inner: _TabParts, tools: _CaptionTools) -> None:
    """What changes many captions, takes a project away, and undoes both."""
    told = [inner.remarks, tab.version, inner.edition]
    versions = [tab.version, inner.edition]
    tools.add_trigger.click(partial(_change, app, _add_trigger), [tab.name, *versions], told, **PRIVATE)
    found = [tab.name, *versions, tools.find, tools.put]
    gr.on([tools.find.submit, tools.put.submit], None, None, None, js=PRESS_REPLACE, **PRIVATE)
    tools.replace.click(partial(_change, app, _replace), found, told, **PRIVATE)
    inner.undo.click(partial(_change, app, _undo), [tab.name, *versions], told, **PRIVATE)
    tools.delete.click(lambda: gr.update(visible=True), None, tools.sure, **HIDDEN)
    tools.keep.click(lambda: gr.update(visible=False), None, tools.sure, **HIDDEN)
    moved = [tab.name, tab.opened, *tab.about, inner.remarks, tools.sure, tools.restore, inner.deleted, tab.version]
    tools.delete_now.click(
        partial(_delete, app), [tab.name, tab.version], moved, show_progress_on=inner.remarks, **PRIVATE
    )
    tools.restore.click(
        partial(_restore, app), [inner.deleted, tab.version], moved, show_progress_on=inner.remarks, **PRIVATE
    )


def _first(app: AppState) -> list[Any]:
    """The project touched last, or a first one."""
    known = list_projects(app.data_dir)
    name = known[0].name if known else FIRST
    opened = gr.update(choices=[project.name for project in known], value=name, interactive=True)
    return [opened, name, *_about(app, name)]


def _about(app: AppState, name: str) -> list[Any]:
    """Fields for what is known of a project; for a new one, words from the preset."""
    return _fields(Project(app.data_dir, name).info or suggested_words("pocket", "style"))


def _fields(about: ProjectInfo) -> list[Any]:
    return [about.kind, about.trigger, gr.update(value=about.class_name, visible=about.kind == "subject")]


def _open(app: AppState, name: str, opened: str) -> list[Any]:
    """Another project was chosen: its words."""
    try:
        return [gr.skip()] * 5 if name == opened else [name, *_about(app, name or ""), ""]
    except SdloraError as error:
        return [*[gr.skip()] * 4, note([str(error)], "bad")]


def _tell(app: AppState, name: str | None, kind: Kind, trigger: str, class_name: str, touches: int = 0) -> list[Any]:
    """Keep what the pictures show, once there are any."""
    try:
        project = Project(app.data_dir, name) if name else None  # None: the page is not all there yet.
        if project is not None and project.info is not None:
            project.set_info(ProjectInfo(kind, trigger, class_name))
        return [gr.skip(), touches + 1]
    except SdloraError as error:
        return [note([str(error)], "bad"), gr.skip()]


def _retell(app: AppState, name: str, kind: Kind, trigger: str, class_name: str) -> list[Any]:
    """A style became a subject, or the other way: words that were only suggested change with it."""
    other = suggested_words("pocket", "style" if kind == "subject" else "subject")
    suggested = suggested_words("pocket", kind)
    trigger = suggested.trigger if trigger in ("", other.trigger) else trigger
    class_name = class_name or suggested.class_name
    _tell(app, name, kind, trigger, class_name)
    return [gr.skip(), trigger, gr.update(value=class_name, visible=kind == "subject")]


def _add(
    app: AppState, files: Any, paths: str, name: str, kind: Kind, trigger: str, class_name: str, version: int,
    progress: gr.Progress = LIVE,
) -> list[Any]:  # fmt: skip
    """Take dropped files in; the field is then free for more. A kohya folder's words are used, or offered."""
    nothing = [None, None, gr.update(visible=False), None, gr.skip(), gr.skip(), gr.skip()]
    try:
        project = Project(app.data_dir, name or "")
        about = ProjectInfo(kind, trigger, class_name)
        fresh = project.info is None and about == suggested_words("pocket", kind)
        progress(0, desc="Unpacking and reading")
        added = project.add(
            _dropped(files or [], paths), lambda done, total: progress((done, total), desc="Reading", unit="pictures")
        )
        words = added.folder_words
        if words and fresh:
            about = ProjectInfo(words.kind, words.trigger, words.class_name)
        project.set_info(about)
        said = list(added.remarks[:REMARKS])
        if len(added.remarks) > REMARKS:
            said.append(f"{len(added.remarks) - REMARKS} more were not taken, for reasons like these.")
        offers = words is not None and (words.trigger, words.class_name) != (about.trigger, about.class_name)
        button = gr.update(visible=True, value=_offer(words)) if offers and words else gr.update(visible=False)
        return [None, None, note(said, "bad"), version + 1, button, words, *_fields(about)]
    except SdloraError as error:
        return [*nothing[:2], note([str(error)], "bad"), version + 1, *nothing[2:]]


def _offer(words: FolderWords) -> str:
    called = f"{words.trigger}, a {words.class_name}" if words.class_name else words.trigger
    return f"Use the words of the folder's name: {called}"


def _use(words: FolderWords, *about: Any) -> list[Any]:
    """Take the offered words; the fields' own events keep them."""
    return [gr.update(visible=False), *_fields(ProjectInfo(words.kind, words.trigger, words.class_name))]


def _dropped(files: list[Any], paths: str) -> list[UploadedFile]:
    """Uploaded files under the names that their folder gave them, where the browser told those."""
    try:
        told = json.loads(paths or "[]")
    except (ValueError, RecursionError):  # The page's own script tells them; a program may tell anything.
        told = None
    named = isinstance(told, list) and len(told) == len(files) and all(isinstance(name, str) for name in told)
    names = told if named else [Path(str(file)).name for file in files]
    return [UploadedFile(Path(str(file)), PurePosixPath(name)) for file, name in zip(files, names, strict=True)]


def _status(app: AppState, name: str) -> list[Any]:
    """How many pictures there are, and what Undo would undo."""
    try:
        project = Project(app.data_dir, name or "")
        said, step = project.status(), project.history.newest()
        undo = gr.update(visible=step is not None, value=f"Undo: {step.what}" if step else "Undo")
        return [note([said], "good" if "ready" in said else "info"), undo]
    except SdloraError as error:
        return [note([str(error)], "bad"), gr.update(visible=False)]


def _check(app: AppState, name: str, base: str, progress: gr.Progress = LIVE) -> str:
    """What the doctor says of the project."""
    try:
        project = Project(app.data_dir, name or "")
        number = len(project.images())
        if not number:
            return ""
        size = native_size(base or "pocket")
        found = doctor.check_dataset(
            project.data(), size, lambda done, total: progress((done, total), desc="Looking at the pictures")
        )
        return findings_html.listed(found, number)
    except SdloraError as error:
        return note([str(error)], "bad")


def _change(app: AppState, change: Callable[..., str], name: str, version: int, edition: int, *words: str) -> list[Any]:
    """Change captions or pictures, say what was done, and have the cards read them again."""
    try:
        said = change(Project(app.data_dir, name or ""), *words)
        return [note([said]), version + 1, edition + 1]
    except SdloraError as error:
        return [note([str(error)], "bad"), gr.skip(), gr.skip()]


def _add_trigger(project: Project) -> str:
    number = project.add_trigger()
    return f"Changed {pluralize(number, 'caption')}." if number else "Every caption has the trigger already."


def _replace(project: Project, find: str, put: str) -> str:
    number = project.replace(find, put)
    return f"Changed {pluralize(number, 'caption')}." if number else f"No caption holds “{find}”."


def _undo(project: Project) -> str:
    what = project.undo()
    return f"Undone: {what}." if what else "There is nothing to undo."


def _delete(app: AppState, name: str, version: int) -> list[Any]:
    """Take the project out, unless it is being trained on, and show the next one."""
    try:
        item = app.library.delete_project(name or "")
        back = gr.update(visible=True, value=f"Bring {item.name} back")
        said = note([f"{item.name} is in the trash, for thirty days."])
        return [*_first(app), said, gr.update(visible=False), back, item.folder.name, version + 1]
    except SdloraError as error:
        return [*[gr.skip()] * 5, note([str(error)], "bad"), gr.update(visible=False), *[gr.skip()] * 3]


def _restore(app: AppState, item: str, version: int) -> list[Any]:
    """Bring the deleted project back, and show it."""
    try:
        trash = app.library.trash
        (folder,) = trash.restore(trash.find(item))
        name = folder.name
        choices = [project.name for project in list_projects(app.data_dir)]
        shown = [gr.update(choices=choices, value=name), name, *_about(app, name)]
        return [*shown, note([f"{name} is back."]), gr.skip(), gr.update(visible=False), "", version + 1]
    except SdloraError as error:
        return [*[gr.skip()] * 5, note([str(error)], "bad"), *[gr.skip()] * 4]
