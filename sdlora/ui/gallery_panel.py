"""The pictures that were drawn: they stay, and each tells what it was made from, or goes to the trash and back."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import service
from sdlora.errors import SdloraError
from sdlora.generation.images import embedded_texts
from sdlora.generation.infotext import RecalledSettings, read_parameters, recall_image, recall_text
from sdlora.ui import create_form as fields
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, cached
from sdlora.ui.create_form import CreateForm
from sdlora.ui.event_options import HIDDEN

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


def wire(desk: AppState, inputs: CreateForm, results: GalleryPanel, reading: InfotextDrop) -> None:
    """Wire both to the fields."""
    r = results

    def choose(event: gr.SelectData) -> list[Any]:  # Gradio finds the event by the annotation, which a partial hides.
        return _choose(desk, Path(event.value["image"]["path"]).name)

    r.gallery.select(choose, None, [r.chosen, r.about, r.parameters], **HIDDEN)
    r.older.click(lambda most: most + SHOWN, r.most, r.most, **HIDDEN).then(
        partial(show, desk), r.most, r.shown, **HIDDEN
    )
    r.reuse.click(partial(_reuse, desk), r.chosen, [r.message, *inputs.filled], **HIDDEN)
    r.seed.click(partial(_same_seed, desk), r.chosen, [r.message, inputs.seed], **HIDDEN)
    moved = [r.message, r.gone, r.undo, r.about, *r.shown]
    r.delete.click(partial(_delete, desk), [r.chosen, r.most], moved, **HIDDEN)
    r.undo.click(partial(_undo, desk), [r.gone, r.most], moved, **HIDDEN)
    read = [reading.message, *inputs.filled]
    reading.file.upload(partial(_read_file, desk), reading.file, [reading.file, *read], **HIDDEN)
    gr.on([reading.fill.click, reading.text.submit], partial(_read_text, desk), reading.text, read, **HIDDEN)


def show(desk: AppState, most: int) -> list[Any]:
    """New values for ``GalleryPanel.shown``: whole files, with their parameters in them."""
    there = service.gallery.newest_images(desk.creations)
    pictures = [cached(path) for path in there[:most] if path.is_file()]
    return [gr.update(value=pictures, selected_index=None), gr.update(visible=len(there) > most)]


def last_seed(desk: AppState, number: int) -> Any:
    """The seed of the first picture of request ``number``, or of the newest picture that there is."""
    ticket = desk.creator.ticket(number)
    paths = ticket.paths if ticket and ticket.paths else service.gallery.newest_images(desk.creations, 1)
    try:
        known = read_parameters(paths[0]) if paths else None
        return int(known.settings["Seed"]) if known else gr.skip()
    except (SdloraError, KeyError, ValueError):
        return gr.skip()


def _choose(desk: AppState, name: str) -> list[Any]:
    """The chosen picture's name, and what it was made from."""
    try:
        text = embedded_texts(desk.creations / name).get("parameters", "")
    except SdloraError:
        return [gr.skip(), gr.update(visible=False), ""]
    return [name, gr.update(visible=True), text]


def _recalled(desk: AppState, name: str) -> RecalledSettings:
    return recall_image(desk.creations / name, _known(desk))


def _known(desk: AppState) -> list[str]:
    return [adapter.name for adapter in desk.look().adapters]


def _filled(desk: AppState, recalled: RecalledSettings) -> list[Any]:
    """A message and ``CreateForm.filled``."""
    remarks, base = list(recalled.remarks), fields.base_called(desk, recalled)
    if recalled.model and fields.base_name(base) != recalled.model:
        instead = f"{fields.base_name(base)} is taken" if base else "the base stays as it is"
        remarks.append(f"It was drawn with the base {recalled.model}, which is not known here: {instead}.")
    said = page_html.note(["The settings are filled in.", *remarks], "info" if remarks else "good")
    return [said, *fields.fill(desk, recalled)]


def _nothing(error: SdloraError) -> list[Any]:
    return [page_html.note([str(error)], "bad"), *[gr.skip()] * fields.FILLED]


def _reuse(desk: AppState, name: str) -> list[Any]:
    try:
        return _filled(desk, _recalled(desk, name))
    except SdloraError as error:
        return _nothing(error)


def _same_seed(desk: AppState, name: str) -> list[Any]:
    try:
        return ["", _recalled(desk, name).numbers.get("seed", gr.skip())]
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), gr.skip()]


def _read_file(desk: AppState, path: str | None) -> list[Any]:
    """Fill the fields from a dropped picture; the drop zone is empty again, as a filled one takes no more."""
    try:
        if path is None:
            return [gr.skip()] * (2 + fields.FILLED)
        return [None, *_filled(desk, recall_image(Path(path), _known(desk)))]
    except SdloraError as error:
        return [None, *_nothing(error)]


def _read_text(desk: AppState, text: str | None) -> list[Any]:
    try:
        return _filled(desk, recall_text(text or "", _known(desk)))
    except SdloraError as error:
        return _nothing(error)


def _delete(desk: AppState, name: str, most: int) -> list[Any]:
    try:
        gone = service.gallery.trash_image(desk.data_dir, name)
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), "", *[gr.update(visible=False)] * 2, *show(desk, most)]
    said = page_html.note(["The picture is in the trash, for thirty days."])
    return [said, gone, gr.update(visible=True), gr.update(visible=False), *show(desk, most)]


def _undo(desk: AppState, gone: str, most: int) -> list[Any]:
    try:
        service.gallery.restore_image(desk.data_dir, gone)
        said = page_html.note(["The picture is back."], "good")
    except SdloraError as error:
        said = page_html.note([str(error)], "bad")
    return [said, "", *[gr.update(visible=False)] * 2, *show(desk, most)]
