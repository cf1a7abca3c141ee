"""The images that were made, with their settings, and a way to the trash and back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.generation import embedded_texts, newest_images, restore_image, trash_image
from sdlora.errors import SdloraError
from sdlora.generation.infotext import RecalledSettings, read_parameters, recall_image, recall_text
from sdlora.ui import create_form, page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.create_form import CreateForm
from sdlora.ui.listeners import HIDDEN, Values

PAGE_SIZE = 24
"""Images that are shown at first, and that each click on the button below them adds."""


@dataclass(frozen=True)
class GalleryPanel:
    """The gallery, and what can be done with the image that is chosen in it."""

    gallery: gr.Gallery
    older: gr.Button
    limit: gr.State
    """Number of images that are shown."""
    chosen: gr.State
    """File name of the chosen image."""
    about: gr.Column
    parameters: gr.Textbox
    reuse: gr.Button
    seed: gr.Button
    delete: gr.Button
    undo: gr.Button
    deleted: gr.State
    """Folder in the trash of the image that was deleted last."""
    message: gr.HTML

    @property
    def images(self) -> list[Block]:
        """Components that ``show`` updates."""
        return [self.gallery, self.older]


@dataclass(frozen=True)
class InfotextDrop:
    """Components into which an image or a text goes to fill the form."""

    file: gr.File
    text: gr.Textbox
    fill: gr.Button
    message: gr.HTML


def build() -> GalleryPanel:
    """Lay the gallery out."""
    gallery = gr.Gallery(
        label="Pictures, the newest first", show_label=False, elem_id="creations", elem_classes="creations",
        interactive=False, object_fit="contain", columns=4, height="auto", buttons=["download", "fullscreen"],
    )  # fmt: skip
    older = gr.Button("Show older pictures", size="sm", visible=False, elem_id="older-pictures")
    message = gr.HTML(elem_id="picture-message")
    undo = gr.Button("Undo delete", size="sm", visible=False, elem_id="undo-delete")
    with gr.Column(visible=False, elem_id="picture-about") as about:
        parameters = gr.Textbox(label="Made from", lines=3, max_lines=8, interactive=False, elem_id="parameters")
        with gr.Row(elem_classes="small-buttons"):
            reuse = gr.Button("Reuse settings", size="sm", min_width=110, elem_id="reuse-settings")
            seed = gr.Button("Same seed", size="sm", min_width=110, elem_id="same-seed")
            delete = gr.Button("Delete", size="sm", min_width=110, elem_id="delete-picture")
    return GalleryPanel(
        gallery, older, gr.State(PAGE_SIZE), gr.State(""), about, parameters, reuse, seed, delete, undo, gr.State(""),
        message,
    )  # fmt: skip


def build_drop() -> InfotextDrop:
    """Lay the drop zone out."""
    with gr.Accordion("Settings from a picture or a text", open=False, elem_id="reading"):
        file = gr.File(label="A picture (PNG)", file_types=[".png"], height=140, elem_id="read-picture")
        text = gr.Textbox("", label="Or its text, as A1111 shows it", lines=2, elem_id="read-text")
        button = gr.Button("Fill in", size="sm", elem_id="read-button")
    message = gr.HTML(elem_id="read-message")
    return InfotextDrop(file, text, button, message)


def wire(app: AppState, form: CreateForm, panel: GalleryPanel, drop: InfotextDrop) -> None:
    """Wire the gallery and the drop zone to the form."""

    def choose(event: gr.SelectData) -> Values:  # Gradio finds the event by its annotation, which a partial hides.
        return _choose(app, panel, Path(event.value["image"]["path"]).name)

    panel.gallery.select(choose, None, [panel.chosen, panel.about, panel.parameters], **HIDDEN)
    panel.older.click(lambda limit: limit + PAGE_SIZE, panel.limit, panel.limit, **HIDDEN).then(
        partial(show, app, panel), panel.limit, panel.images, **HIDDEN
    )
    panel.reuse.click(partial(_reuse, app, form, panel), panel.chosen, [panel.message, *form.filled], **HIDDEN)
    panel.seed.click(partial(_same_seed, app), panel.chosen, [panel.message, form.seed], **HIDDEN)
    moved = [panel.message, panel.deleted, panel.undo, panel.about, *panel.images]
    panel.delete.click(partial(_delete, app, panel), [panel.chosen, panel.limit], moved, **HIDDEN)
    panel.undo.click(partial(_undo, app, panel), [panel.deleted, panel.limit], moved, **HIDDEN)
    filled = [drop.message, *form.filled]
    drop.file.upload(partial(_read_file, app, form, drop), drop.file, [drop.file, *filled], **HIDDEN)
    gr.on([drop.fill.click, drop.text.submit], partial(_read_text, app, form, drop), drop.text, filled, **HIDDEN)


def show(app: AppState, panel: GalleryPanel, limit: int) -> Values:
    """Show the newest images as whole files, which contain their parameters."""
    paths = newest_images(app.images_folder)
    images = [cache_file(path) for path in paths[:limit] if path.is_file()]
    return {
        panel.gallery: gr.update(value=images, selected_index=None), panel.older: gr.update(visible=len(paths) > limit),
    }  # fmt: skip


def last_seed(app: AppState, number: int) -> Any:
    """Return the seed of the first image of request ``number``, or of the newest image."""
    status = app.inference.status(number)
    paths = status.paths if status and status.paths else newest_images(app.images_folder, 1)
    try:
        parameters = read_parameters(paths[0]) if paths else None
        return int(parameters.settings["Seed"]) if parameters else gr.skip()
    except (SdloraError, KeyError, ValueError):
        return gr.skip()


def _choose(app: AppState, panel: GalleryPanel, name: str) -> Values:
    """Show the parameters of the chosen image."""
    try:
        text = embedded_texts(app.images_folder / name).get("parameters", "")
    except SdloraError:
        return {panel.about: gr.update(visible=False), panel.parameters: ""}
    return {panel.chosen: name, panel.about: gr.update(visible=True), panel.parameters: text}


def _adapters(app: AppState) -> list[str]:
    return [adapter.name for adapter in app.snapshot().adapters]


def _recall(app: AppState, name: str) -> RecalledSettings:
    return recall_image(app.images_folder / name, _adapters(app))


def _fill(app: AppState, form: CreateForm, message: gr.HTML, recall: Callable[[], RecalledSettings]) -> Values:
    """Fill the form with recalled settings, and say in ``message`` what they leave open."""
    try:
        recalled = recall()
        remarks, base = list(recalled.remarks), create_form.base_called(app, recalled)
        if recalled.model and create_form.base_name(base) != recalled.model:
            instead = f"{create_form.base_name(base)} is used instead" if base else "the base model stays as it is"
            remarks.append(f"It was made with the base model {recalled.model}, which is not here: {instead}.")
        text = page_html.note(["The settings are filled in.", *remarks], "info" if remarks else "good")
        return {message: text, **create_form.fill(app, form, recalled)}
    except SdloraError as error:
        return {message: page_html.note([str(error)], "bad")}


def _reuse(app: AppState, form: CreateForm, panel: GalleryPanel, name: str) -> Values:
    return _fill(app, form, panel.message, lambda: _recall(app, name))


def _same_seed(app: AppState, name: str) -> list[Any]:
    try:
        return ["", _recall(app, name).numbers.get("seed", gr.skip())]
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), gr.skip()]


def _read_file(app: AppState, form: CreateForm, drop: InfotextDrop, path: str | None) -> Values:
    """Fill the form from a dropped image, and empty the drop zone, which takes no more while it is filled."""
    if path is None:
        return gr.skip()
    return {drop.file: None, **_fill(app, form, drop.message, lambda: recall_image(Path(path), _adapters(app)))}


def _read_text(app: AppState, form: CreateForm, drop: InfotextDrop, text: str | None) -> Values:
    return _fill(app, form, drop.message, lambda: recall_text(text or "", _adapters(app)))


def _delete(app: AppState, panel: GalleryPanel, name: str, limit: int) -> Values:
    try:
        deleted = trash_image(app.data_dir, name)
    except SdloraError as error:
        return _after_delete(app, panel, limit, page_html.note([str(error)], "bad"))
    message = page_html.note(["The picture is in the trash and stays there for thirty days."])
    return _after_delete(app, panel, limit, message, deleted)


def _undo(app: AppState, panel: GalleryPanel, deleted: str, limit: int) -> Values:
    try:
        restore_image(app.data_dir, deleted)
        message = page_html.note(["The picture is back."], "good")
    except SdloraError as error:
        message = page_html.note([str(error)], "bad")
    return _after_delete(app, panel, limit, message)


def _after_delete(app: AppState, panel: GalleryPanel, limit: int, message: str, deleted: str = "") -> Values:
    """Show the images that are left; ``deleted`` is what Undo brings back."""
    return {
        panel.message: message, panel.deleted: deleted, panel.undo: gr.update(visible=bool(deleted)),
        panel.about: gr.update(visible=False), **show(app, panel, limit),
    }  # fmt: skip
