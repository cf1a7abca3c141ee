"""The panel of the Pictures tab on which a person paints what counts in a picture."""

import json
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.blocks import Block

from sdlora.data.mask_files import read_painted
from sdlora.data.projects import Project
from sdlora.errors import SdloraError
from sdlora.ui.app_state import AppState, small_mask, thumbnail
from sdlora.ui.listeners import EVERY, HIDDEN, PRIVATE, Values
from sdlora.ui.page_html import note
from sdlora.ui.project_panel import ImagesTab

SCRIPT, TEMPLATE = Path(__file__).with_name("mask_painter.js"), Path(__file__).with_name("mask_painter.html")
SHOW = "() => setTimeout(() => document.querySelector('#mask-panel')?.scrollIntoView({block: 'nearest'}), 50)"


@dataclass(frozen=True)
class MaskPanel:
    """The panel, which is hidden until a card's button opens it."""

    box: gr.Column
    title: gr.HTML
    painter: gr.HTML
    """Its value is JSON: the picture's name, and the addresses of a small copy and of its mask ("" without one)."""
    message: gr.HTML

    @property
    def opened(self) -> list[Block]:
        """Components that ``open_picture`` updates."""
        return [self.box, self.title, self.painter, self.message]


def build() -> MaskPanel:
    """Lay the panel out."""
    with gr.Column(visible=False, elem_id="mask-panel") as box:
        title = gr.HTML()
        painter = gr.HTML(
            "", html_template=TEMPLATE.read_text(encoding="utf-8"), js_on_load=SCRIPT.read_text(encoding="utf-8"),
            elem_id="mask-painter",
        )  # fmt: skip
        message = gr.HTML(elem_id="mask-message")
    return MaskPanel(box, title, painter, message)


def wire(app: AppState, tab: ImagesTab, panel: MaskPanel) -> None:
    """Wire the painter's buttons; the cards' buttons are wired as they are rendered."""

    def save(values: Values, event: gr.EventData) -> Values:  # Gradio finds the event by its annotation.
        return _store(app, tab, panel, values, getattr(event, "name", ""), getattr(event, "mask", ""))

    def remove(values: Values, event: gr.EventData) -> Values:
        return _store(app, tab, panel, values, getattr(event, "name", ""))

    inputs, outputs = {tab.project, tab.images_version}, [tab.message, tab.images_version, panel.box, panel.message]
    options: dict[str, Any] = {**PRIVATE, "show_progress_on": panel.message}
    panel.painter.save(save, inputs, outputs, **options)
    panel.painter.remove(remove, inputs, outputs, **options)
    close = partial(gr.update, visible=False)
    panel.painter.close(close, None, panel.box, **HIDDEN)
    tab.open_project.change(close, None, panel.box, **EVERY)


def open_picture(panel: MaskPanel, project: Project, image: Path) -> Values:
    """Show ``image`` with its mask in the painter."""
    try:
        mask = project.masks.find(image)
        shown = {
            "name": image.relative_to(project.folder).as_posix(),
            "picture": _address(thumbnail(image)),
            "mask": _address(small_mask(mask)) if mask else "",
        }
    except SdloraError as error:
        return {panel.box: gr.update(visible=True), panel.message: note([str(error)], "bad")}
    title = (
        f"<h3>Mask of {escape(image.name)}</h3><p class='quiet'>Paint what counts; what stays dark is not learnt.</p>"
    )
    return {
        panel.box: gr.update(visible=True), panel.title: title, panel.painter: json.dumps(shown), panel.message: "",
    }  # fmt: skip


def _address(file: str) -> str:
    return f"gradio_api/file={quote(file)}"


def _store(
    app: AppState, tab: ImagesTab, panel: MaskPanel, values: Values, name: object, painted: object = None
) -> Values:
    """Store what was painted on the picture ``name``, or remove its mask, and close the panel; keep it for an error."""
    try:
        project = Project(app.data_dir, values[tab.project] or "")
        image = project.image(str(name))
        done = project.masks.remove(image) if painted is None else project.masks.write(image, read_painted(painted))
    except SdloraError as error:
        return {panel.message: note([str(error)], "bad")}
    return {
        tab.message: note([done]), tab.images_version: values[tab.images_version] + 1,
        panel.box: gr.update(visible=False), panel.message: "",
    }  # fmt: skip
