"""A card a picture: what it looks like, its caption, and a way to take it out."""

from pathlib import Path

import gradio as gr

from sdlora.data.projects import Project
from sdlora.errors import SdloraError
from sdlora.ui.app_state import thumbnail
from sdlora.ui.event_options import HIDDEN, LAST
from sdlora.ui.findings_html import card_id
from sdlora.ui.page_html import note

SHOWN = 100


def cards(data_dir: Path, counter: gr.State, touched: gr.State, name: str, version: int, edition: int) -> None:
    """The cards of a project's pictures, inside a ``gr.render``.

    They count in ``counter`` what changes pictures, and in ``touched`` what changes captions. What follows from that
    is wired outside: a render takes its own events' successors away with it.
    """
    try:
        project = Project(data_dir, name or "")
    except SdloraError:
        return
    pictures = project.images()
    with gr.Row(elem_classes="cards"):
        for picture in pictures[:SHOWN]:
            if (image := _image(picture)) is not None:
                _card(project, picture, image, counter, touched, edition)
    if len(pictures) > SHOWN:
        gr.HTML(note([f"The first {SHOWN} of {len(pictures)} pictures are shown; all are trained on."]))


def _image(picture: Path) -> str | None:
    """A small copy to show; none of a file that cannot be read, which the findings name."""
    try:
        return thumbnail(picture)
    except (SdloraError, OSError):
        return None


def _card(project: Project, picture: Path, image: str, counter: gr.State, touched: gr.State, edition: int) -> None:
    key = f"{project.name}/{picture.name}/{picture.stat().st_mtime_ns}"
    said = project.caption(picture)
    with gr.Column(elem_classes="card", elem_id=card_id(picture), min_width=0, key=f"{key}:card"):
        gr.Image(
            image, show_label=False, interactive=False, buttons=[], height=150, key=f"{key}:image",
            alt_text=picture.name,
        )  # fmt: skip
        caption = gr.Textbox(
            said, label=f"Caption of {picture.name}", lines=2, max_lines=4, interactive=True,
            placeholder=project.training_caption(picture), key=f"{key}:caption:{edition}",
        )  # fmt: skip
        remove = gr.Button("Remove", size="sm", variant="secondary", interactive=True, key=f"{key}:remove")

    def keep(text: str) -> None:
        nonlocal said
        if text != said:
            project.write_caption(picture, text)
        said = text

    def leave(text: str, touches: int) -> int:
        keep(text)
        return touches + 1

    def drop(version: int) -> int:
        project.remove(picture)
        return version + 1

    # Not `change`: a drawing that was under way while somebody wrote puts the old text back into the field, which is a
    # change too. What is pasted is no `input`; it is kept when the field is left. With keys, as a browser goes on with
    # the listeners that it knows until it has seen the next drawing.
    caption.input(keep, caption, None, key=f"{key}:keep", **LAST)
    caption.blur(leave, [caption, touched], touched, key=f"{key}:leave", **HIDDEN)
    remove.click(drop, counter, counter, key=f"{key}:drop", **HIDDEN)
