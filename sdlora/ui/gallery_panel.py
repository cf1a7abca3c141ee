"""The pictures that were drawn: they stay, and each tells what it was made from, or goes to the trash and back."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.generation import embedded_texts, newest_images, restore_image, trash_image
from sdlora.errors import SdloraError
from sdlora.generation.infotext import RecalledSettings, read_parameters, recall_image, recall_text
from sdlora.ui import create_form as fields
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.create_form import CreateForm
from sdlora.ui.listeners import HIDDEN

SHOWN = 24
"""Pictures at first, and more with each click on the button below them."""


@dataclass(frozen=True)
class GalleryPanel:
    """The gallery, and what can be done with the picture that is chosen in it."""

    gallery: gr.Gallery
    older: gr.Button
    most: gr.State
    """How many pictures this visitor sees."""
    chosen: gr.State
    """The chosen picture's file name."""
    about: gr.Column
    parameters: gr.Textbox
    reuse: gr.Button
    seed: gr.Button
    delete: gr.Button
    undo: gr.Button
    gone: gr.State
    """Where in the trash the picture lies that was deleted last."""
    message: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """What ``show`` gives new values to."""
        return [self.gallery, self.older]


@dataclass(frozen=True)
class InfotextDrop:
    """Where a picture or a text is dropped to fill the fields."""

    file: gr.File
    text: gr.Textbox
    fill: gr.Button
    message: gr.HTML


def build() -> GalleryPanel:
    """Lay the results out."""
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
        gallery, older, gr.State(SHOWN), gr.State(""), about, parameters, reuse, seed, delete, undo, gr.State(""),
        message,
    )  # fmt: skip


def build_reading() -> InfotextDrop:
    """Lay the drop zone out."""
    with gr.Accordion("Settings from a picture or a text", open=False, elem_id="reading"):
        file = gr.File(label="A picture (PNG)", file_types=[".png"], height=140, elem_id="read-picture")
        text = gr.Textbox("", label="Or its text, as A1111 shows it", lines=2, elem_id="read-text")
        button = gr.Button("Fill in", size="sm", elem_id="read-button")
    message = gr.HTML(elem_id="read-message")
    return InfotextDrop(file, text, button, message)


def wire(app: AppState, inputs: CreateForm, results: GalleryPanel, reading: InfotextDrop) -> None:
    """Wire both to the fields."""
    r = results

    def choose(event: gr.SelectData) -> list[Any]:  # Gradio finds the event by the annotation, which a partial hides.
        return _choose(app, Path(event.value["image"]["path"]).name)

    r.gallery.select(choose, None, [r.chosen, r.about, r.parameters], **HIDDEN)
    r.older.click(lambda most: most + SHOWN, r.most, r.most, **HIDDEN).then(
        partial(show, app), r.most, r.shown, **HIDDEN
    )
    r.reuse.click(partial(_reuse, app), r.chosen, [r.message, *inputs.filled], **HIDDEN)
    r.seed.click(partial(_same_seed, app), r.chosen, [r.message, inputs.seed], **HIDDEN)
    moved = [r.message, r.gone, r.undo, r.about, *r.shown]
    r.delete.click(partial(_delete, app), [r.chosen, r.most], moved, **HIDDEN)
    r.undo.click(partial(_undo, app), [r.gone, r.most], moved, **HIDDEN)
    read = [reading.message, *inputs.filled]
    reading.file.upload(partial(_read_file, app), reading.file, [reading.file, *read], **HIDDEN)
    gr.on([reading.fill.click, reading.text.submit], partial(_read_text, app), reading.text, read, **HIDDEN)


def show(app: AppState, most: int) -> list[Any]:
    """New values for ``GalleryPanel.shown``: whole files, with their parameters in them."""
    there = newest_images(app.images_folder)
    pictures = [cache_file(path) for path in there[:most] if path.is_file()]
    return [gr.update(value=pictures, selected_index=None), gr.update(visible=len(there) > most)]


def last_seed(app: AppState, number: int) -> Any:
    """The seed of the first picture of request ``number``, or of the newest picture that there is."""
    ticket = app.inference.ticket(number)
    paths = ticket.paths if ticket and ticket.paths else newest_images(app.images_folder, 1)
    try:
        known = read_parameters(paths[0]) if paths else None
        return int(known.settings["Seed"]) if known else gr.skip()
    except (SdloraError, KeyError, ValueError):
        return gr.skip()


def _choose(app: AppState, name: str) -> list[Any]:
    """The chosen picture's name, and what it was made from."""
    try:
        text = embedded_texts(app.images_folder / name).get("parameters", "")
    except SdloraError:
        return [gr.skip(), gr.update(visible=False), ""]
    return [name, gr.update(visible=True), text]


def _recalled(app: AppState, name: str) -> RecalledSettings:
    return recall_image(app.images_folder / name, _known(app))


def _known(app: AppState) -> list[str]:
    return [adapter.name for adapter in app.snapshot().adapters]


def _filled(app: AppState, recalled: RecalledSettings) -> list[Any]:
    """A message and ``CreateForm.filled``."""
    remarks, base = list(recalled.remarks), fields.base_called(app, recalled)
    if recalled.model and fields.base_name(base) != recalled.model:
        instead = f"{fields.base_name(base)} is taken" if base else "the base stays as it is"
        remarks.append(f"It was drawn with the base {recalled.model}, which is not known here: {instead}.")
    said = page_html.note(["The settings are filled in.", *remarks], "info" if remarks else "good")
    return [said, *fields.fill(app, recalled)]


def _nothing(error: SdloraError) -> list[Any]:
    return [page_html.note([str(error)], "bad"), *[gr.skip()] * fields.FILLED]


def _reuse(app: AppState, name: str) -> list[Any]:
    try:
        return _filled(app, _recalled(app, name))
    except SdloraError as error:
        return _nothing(error)


def _same_seed(app: AppState, name: str) -> list[Any]:
    try:
        return ["", _recalled(app, name).numbers.get("seed", gr.skip())]
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), gr.skip()]


def _read_file(app: AppState, path: str | None) -> list[Any]:
    """Fill the fields from a dropped picture; the drop zone is empty again, as a filled one takes no more."""
    try:
        if path is None:
            return [gr.skip()] * (2 + fields.FILLED)
        return [None, *_filled(app, recall_image(Path(path), _known(app)))]
    except SdloraError as error:
        return [None, *_nothing(error)]


def _read_text(app: AppState, text: str | None) -> list[Any]:
    try:
        return _filled(app, recall_text(text or "", _known(app)))
    except SdloraError as error:
        return _nothing(error)


def _delete(app: AppState, name: str, most: int) -> list[Any]:
    try:
        gone = trash_image(app.data_dir, name)
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), "", *[gr.update(visible=False)] * 2, *show(app, most)]
    said = page_html.note(["The picture is in the trash, for thirty days."])
    return [said, gone, gr.update(visible=True), gr.update(visible=False), *show(app, most)]


def _undo(app: AppState, gone: str, most: int) -> list[Any]:
    try:
        restore_image(app.data_dir, gone)
        said = page_html.note(["The picture is back."], "good")
    except SdloraError as error:
        said = page_html.note([str(error)], "bad")
    return [said, "", *[gr.update(visible=False)] * 2, *show(app, most)]
