"""The first tab: a project, what its pictures show, a field to drop them in, and a card a picture."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.advice import Kind
from sdlora.data.projects import About, Project, as_paths, projects
from sdlora.errors import SdloraError
from sdlora.ui.desk import Desk, thumbnail
from sdlora.ui.markup import note
from sdlora.ui.recipe import suggestion

FIRST = "mystyle"
"""What the first project is called until it is called otherwise."""
SHOWN = 100
KINDS: list[tuple[str, Kind]] = [("A style", "style"), ("A subject", "subject")]


@dataclass(frozen=True)
class Pictures:
    """The components that other tabs need."""

    name: gr.Dropdown
    kind: gr.Radio
    trigger: gr.Textbox
    class_name: gr.Textbox
    version: gr.State
    """Changes whenever the project's pictures do."""


def build(desk: Desk, demo: gr.Blocks) -> Pictures:
    """Lay the tab out and wire it."""
    with gr.Row(equal_height=True):
        name = gr.Dropdown(
            label="Project", allow_custom_value=True, elem_id="project", info="Choose one, or type a new name", scale=2
        )
        kind = gr.Radio(KINDS, value="style", label="What is it?", info="A look, or one thing or person", scale=2)
        trigger = gr.Textbox(label="Trigger word", info="The word that will call it", scale=2)
        class_name = gr.Textbox(label="Kind of subject", info="Such as cat or person", visible=False, scale=2)
    drop = gr.File(
        file_count="multiple", label="Pictures, about ten", height=170,
        elem_classes="drop",
    )  # fmt: skip
    status = gr.HTML(elem_id="pictures-status")
    remarks = gr.HTML(elem_id="pictures-remarks")
    version = gr.State(0)
    tab = Pictures(name, kind, trigger, class_name, version)

    about = [kind, trigger, class_name]
    demo.load(partial(_first, desk), None, [name, *about], api_visibility="private").then(
        partial(_status, desk), name, status, api_visibility="private"
    )
    gr.on([name.input, name.select], partial(_open, desk), name, [*about, remarks], api_visibility="private").then(
        partial(_status, desk), name, status, api_visibility="private"
    )
    kind.input(partial(_retell, desk), [name, *about], about, show_progress="hidden", api_visibility="private")
    for field in (trigger, class_name):
        field.change(
            partial(_tell, desk), [name, *about], remarks, show_progress="hidden", trigger_mode="always_last",
            api_visibility="private",
        )  # fmt: skip
    drop.upload(
        partial(_add, desk), [drop, name, *about, version], [drop, remarks, version], api_visibility="private"
    ).then(partial(_status, desk), name, status, api_visibility="private")
    gr.render([name, version], triggers=[name.change, version.change], show_progress="hidden")(
        partial(_cards, desk, tab, status)
    )
    return tab


def _first(desk: Desk) -> list[Any]:
    """The project touched last, or a first one."""
    known = projects(desk.data_dir)
    name = known[0].name if known else FIRST
    return [gr.update(choices=[project.name for project in known], value=name), *_about(desk, name)]


def _about(desk: Desk, name: str) -> list[Any]:
    """Fields for what is known of a project; for a new one, words from the preset."""
    about = Project(desk.data_dir, name).about or suggestion("pocket", "style")
    class_name = gr.update(value=about.class_name, visible=about.kind == "subject")
    return [about.kind, about.trigger, class_name]


def _open(desk: Desk, name: str) -> list[Any]:
    try:
        return [*_about(desk, name or ""), ""]
    except SdloraError as error:
        return [gr.skip(), gr.skip(), gr.skip(), note([str(error)], "bad")]


def _tell(desk: Desk, name: str, kind: Kind, trigger: str, class_name: str) -> str:
    """Keep what the pictures show, once there are any."""
    try:
        project = Project(desk.data_dir, name or "")
        if project.about is not None:
            project.describe(About(kind, trigger, class_name))
        return ""
    except SdloraError as error:
        return note([str(error)], "bad")


def _retell(desk: Desk, name: str, kind: Kind, trigger: str, class_name: str) -> list[Any]:
    """A style became a subject, or the other way: words that were only suggested change with it."""
    other = suggestion("pocket", "style" if kind == "subject" else "subject")
    suggested = suggestion("pocket", kind)
    trigger = suggested.trigger if trigger in ("", other.trigger) else trigger
    class_name = class_name or suggested.class_name
    _tell(desk, name, kind, trigger, class_name)
    return [gr.skip(), trigger, gr.update(value=class_name, visible=kind == "subject")]


def _add(desk: Desk, files: Any, name: str, kind: Kind, trigger: str, class_name: str, version: int) -> list[Any]:
    """Take dropped files in; the field is then free for more."""
    try:
        project = Project(desk.data_dir, name or "")
        project.describe(About(kind, trigger, class_name))
        said = project.add(as_paths(files))
        return [None, note(said, "bad"), version + 1]
    except SdloraError as error:
        return [None, note([str(error)], "bad"), version + 1]


def _status(desk: Desk, name: str) -> str:
    try:
        lines = Project(desk.data_dir, name or "").status()
        return note(lines, "good" if "ready" in lines[0] else "info")
    except SdloraError as error:
        return note([str(error)], "bad")


def _cards(desk: Desk, tab: Pictures, status: gr.HTML, name: str, version: int) -> None:
    """A card a picture: what it looks like, its caption, and a way to take it out."""
    try:
        project = Project(desk.data_dir, name or "")
    except SdloraError:
        return
    pictures = project.pictures()
    with gr.Row(elem_classes="cards"):
        for picture in pictures[:SHOWN]:
            _card(desk, project, picture, tab, status)
    if len(pictures) > SHOWN:
        gr.HTML(note([f"The first {SHOWN} of {len(pictures)} pictures are shown; all are trained on."]))


def _card(desk: Desk, project: Project, picture: Path, tab: Pictures, status: gr.HTML) -> None:
    key = f"{project.name}/{picture.name}/{picture.stat().st_mtime_ns}"
    with gr.Column(elem_classes="card", min_width=0, key=f"{key}:card"):
        gr.Image(
            thumbnail(picture), show_label=False, interactive=False, buttons=[], height=150, key=f"{key}:image",
            alt_text=picture.name,
        )  # fmt: skip
        caption = gr.Textbox(
            project.caption(picture), label=f"Caption of {picture.name}", lines=2, max_lines=4, interactive=True,
            placeholder=project.spoken(picture), key=f"{key}:caption",
        )  # fmt: skip
        remove = gr.Button("Remove", size="sm", variant="secondary", interactive=True, key=f"{key}:remove")

    def keep(text: str) -> None:
        project.write_caption(picture, text)

    def drop(version: int) -> int:
        project.remove(picture)
        return version + 1

    # Not `input`: it misses text that was pasted or put there by another program.
    gr.on(
        [caption.change, caption.blur], keep, caption, None, show_progress="hidden", trigger_mode="always_last",
        api_visibility="private",
    )  # fmt: skip
    remove.click(drop, tab.version, tab.version, api_visibility="private").then(
        partial(_status, desk), tab.name, status, api_visibility="private"
    )
