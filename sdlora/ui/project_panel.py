"""The project of the Pictures tab: which one is open, what its pictures show, and the words for it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import gradio as gr
from gradio.blocks import Block

from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.data.settings import Kind
from sdlora.errors import SdloraError
from sdlora.ui.app_state import AppState
from sdlora.ui.build_config import suggested_words
from sdlora.ui.listeners import EVERY, HIDDEN, Values
from sdlora.ui.page_html import note

FIRST_PROJECT = "mystyle"
"""Name of the first project until the user gives another."""


@dataclass(frozen=True)
class ImagesTab:
    """Components of the Pictures tab."""

    project: gr.Dropdown
    kind: gr.Radio
    trigger: gr.Textbox
    class_name: gr.Textbox
    paths: gr.Textbox
    """Paths of the uploaded files within their folder, as JSON."""
    drop: gr.File
    folder: gr.UploadButton
    samples: gr.Button
    """Fills an empty project with the sample pictures."""
    use_words: gr.Button
    folder_words: gr.State
    """Words in the name of an uploaded folder, which a click uses."""
    status: gr.HTML
    message: gr.HTML
    findings: gr.HTML
    tags: gr.HTML
    """How often each tag or word occurs in the captions."""
    reading: gr.HTML
    """Reading of the caption that was chosen last, as the model has it."""
    undo: gr.Button
    train: gr.Button
    """Trains on these pictures; the page wires it."""
    train_message: gr.HTML
    open_project: gr.State
    """Name of the project whose words are filled in; changes only when another one is opened."""
    images_version: gr.State
    """Changes whenever the project's pictures do."""
    captions_version: gr.State
    """Changes whenever captions change other than by hand, so that the cards read them again."""
    edits: gr.State
    """Changes whenever a caption or a word of the project does."""
    caption_first: gr.Checkbox
    """Whether pictures without any caption are captioned before training."""
    deleted: gr.State
    """Folder in the trash of the project that was deleted last."""
    base: gr.State
    """Base model for which the pictures are checked; the Train tab sets it."""
    settings: gr.State
    """Settings of the pictures that the Train tab changes, by name."""
    together: gr.State
    """Names of the projects that the Train tab trains beside the open one, which are checked with it."""

    @property
    def words(self) -> list[Block]:
        return [self.kind, self.trigger, self.class_name]

    @property
    def versions(self) -> list[Block]:
        """Components that change with the pictures, and with their captions."""
        return [self.images_version, self.captions_version]

    @property
    def at_training(self) -> set[Block]:
        """Components that a training reads beside those of its form."""
        return {self.caption_first, *self.versions}

    def info(self, values: Values) -> ProjectInfo:
        """Return what the pictures show, as filled in."""
        return ProjectInfo(*(values[component] for component in self.words))


def projects_beside(app: AppState, opened: str, names: Sequence[str] | None) -> list[Project]:
    """Return the projects called ``names`` without the open one. Raises ConfigError for a name that is none."""
    return [Project(app.data_dir, name) for name in dict.fromkeys(names or ()) if name != opened]


def wire(app: AppState, demo: gr.Blocks, tab: ImagesTab) -> None:
    """Open projects and store their words."""
    opened = [tab.project, tab.open_project, *tab.words]
    demo.load(partial(open_latest, app, tab), None, opened, **HIDDEN)
    tab.project.change(
        partial(_open, app, tab), [tab.project, tab.open_project], [*opened[1:], tab.message], **HIDDEN
    )  # fmt: skip
    tab.kind.input(partial(_change_kind, app, tab), {*opened}, tab.words, **HIDDEN)
    for field in (tab.trigger, tab.class_name):
        field.change(partial(_store_words, app, tab), {*opened, tab.edits}, [tab.message, tab.edits], **EVERY)


def open_latest(app: AppState, tab: ImagesTab) -> Values:
    """Open the project that was changed last, or a new one."""
    names = [project.name for project in list_projects(app.data_dir)]
    name = names[0] if names else FIRST_PROJECT
    return {tab.project: gr.update(choices=names, value=name, interactive=True), **project_values(app, tab, name)}


def project_values(app: AppState, tab: ImagesTab, name: str) -> Values:
    """Return the words of the project ``name``; a new project has those of the preset."""
    info = Project(app.data_dir, name).info or suggested_words("pocket", "style")
    return {tab.open_project: name, **word_values(tab, info)}


def word_values(tab: ImagesTab, info: ProjectInfo) -> Values:
    class_name = gr.update(value=info.class_name, visible=info.kind == "subject")
    return {tab.kind: info.kind, tab.trigger: info.trigger, tab.class_name: class_name}


def _open(app: AppState, tab: ImagesTab, name: str, opened: str) -> Values:
    """Fill in the words of the chosen project."""
    if name == opened:
        return gr.skip()
    try:
        return {**project_values(app, tab, name or ""), tab.message: ""}
    except SdloraError as error:
        return {tab.message: note([str(error)], "bad")}


def _store_words(app: AppState, tab: ImagesTab, values: Values) -> Values:
    """Store the words of a project that has pictures."""
    try:
        _store(app, tab, values, tab.info(values))
        return {tab.edits: values[tab.edits] + 1}
    except SdloraError as error:
        return {tab.message: note([str(error)], "bad")}


def _change_kind(app: AppState, tab: ImagesTab, values: Values) -> Values:
    """Replace the words that were suggested for the other kind by those for this one."""
    info = tab.info(values)
    others: Kind = "style" if info.kind == "subject" else "subject"
    suggested = suggested_words("pocket", info.kind)
    trigger = suggested.trigger if info.trigger in ("", suggested_words("pocket", others).trigger) else info.trigger
    with suppress(SdloraError):  # The changed words' own listener reports it.
        _store(app, tab, values, ProjectInfo(info.kind, trigger, info.class_name))
    return {tab.trigger: trigger, tab.class_name: gr.update(visible=info.kind == "subject")}


def _store(app: AppState, tab: ImagesTab, values: Values, info: ProjectInfo) -> None:
    """Store ``info`` if its words are those of the project in the field: while another one opens, they are not yet."""
    name = values[tab.project]
    project = Project(app.data_dir, name) if name and name == values[tab.open_project] else None
    if project is not None and project.info is not None:
        project.set_info(info)
