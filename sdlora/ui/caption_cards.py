"""One card for each picture with its caption, and what the checks of the data set found, listed and marked on cards."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.data.findings import Finding, Severity
from sdlora.data.projects import Project
from sdlora.errors import SdloraError
from sdlora.filesystem.paths import safe_name
from sdlora.ui import mask_panel
from sdlora.ui.app_state import thumbnail
from sdlora.ui.build_config import data_settings
from sdlora.ui.caption_reading import reading_html
from sdlora.ui.listeners import HIDDEN, LAST, PRIVATE
from sdlora.ui.mask_panel import MaskPanel
from sdlora.ui.page_html import note
from sdlora.ui.project_panel import ImagesTab

MAX_CARDS = 100
TITLES: dict[Severity, str] = {"must": "To mend first", "could": "Could be better", "fine": "Taken care of"}
MAX_LINKS = 8
"""Cards that a finding links to; the others are only marked."""
UNCOVER = "() => document.querySelector('.card textarea:focus')?.scrollIntoView({block: 'nearest'})"
"""Moves the chosen caption out from under the panel that shows how it is read."""
IN_TURN = {**HIDDEN, "concurrency_id": "caption-reading", "concurrency_limit": 1}
"""One after the other: the caption that was chosen last is the one that is shown."""
NO_FINDINGS = "Nothing to mend: these pictures can be trained on."


def render_cards(
    data_dir: Path, tab: ImagesTab, masks: MaskPanel, name: str, version: int, captions_version: int
) -> None:
    """Lay out the cards of a project's pictures, inside a ``gr.render``.

    Cards count changes of pictures in ``tab.images_version`` and of captions in ``tab.edits``. Listeners of these are
    wired outside: a new render would remove those that follow an event inside.
    """
    try:
        project = Project(data_dir, name or "")
    except SdloraError:
        return
    images = project.images()
    with gr.Row(elem_classes="cards"):
        for image in images[:MAX_CARDS]:
            if (small := _thumbnail(image)) is not None:
                _card(project, image, small, tab, masks, captions_version)
    if len(images) > MAX_CARDS:
        gr.HTML(note([f"Only the first {MAX_CARDS} of {len(images)} pictures are shown; training uses all of them."]))


def _thumbnail(image: Path) -> str | None:
    """Return a small copy; None for a file that cannot be read, which the findings name."""
    try:
        return thumbnail(image)
    except (SdloraError, OSError):
        return None


def _card(project: Project, image: Path, small: str, tab: ImagesTab, masks: MaskPanel, captions_version: int) -> None:
    key = f"{project.name}/{image.name}/{image.stat().st_mtime_ns}"
    masked = project.masks.find(image) is not None
    classes, word = (["card", "masked"], "Edit mask") if masked else (["card"], "Mask")
    with gr.Column(elem_classes=classes, elem_id=card_id(image), min_width=0, key=f"{key}:card:{word}"):
        gr.Image(
            small, show_label=False, interactive=False, buttons=[], height=150, key=f"{key}:image", alt_text=image.name
        )
        field = gr.Textbox(
            project.caption(image), label=f"Caption of {image.name}", lines=2, max_lines=4, interactive=True,
            placeholder=project.training_caption(image), key=f"{key}:caption:{captions_version}",
        )  # fmt: skip
        with gr.Row(elem_classes="acts", key=f"{key}:acts"):
            paint = gr.Button(word, size="sm", min_width=0, interactive=True, key=f"{key}:paint:{word}")
            remove = gr.Button("Remove", size="sm", min_width=0, interactive=True, key=f"{key}:remove")
    caption = _Caption(project, image)
    # Not `change`: a render that began while somebody typed puts the old text back, which is a change too. Pasted text
    # fires no `input`; it is stored when the field loses focus. The keys keep listeners apart, as a browser uses those
    # it knows until it has received the next render.
    stored = field.input(caption.store, field, None, key=f"{key}:keep", **LAST)
    field.blur(caption.leave, [field, tab.edits], tab.edits, key=f"{key}:leave", **HIDDEN)
    read, inputs = partial(_reading, project, image), [field, tab.base, tab.settings]
    stored.then(read, inputs, tab.reading, key=f"{key}:read", **IN_TURN)
    chosen = field.focus(read, inputs, tab.reading, key=f"{key}:reads", **IN_TURN)
    chosen.then(None, None, None, js=UNCOVER, key=f"{key}:uncover", **HIDDEN)
    paint.click(
        partial(mask_panel.open_picture, masks, project, image), None, masks.opened, key=f"{key}:open", **HIDDEN
    ).then(None, js=mask_panel.SHOW, key=f"{key}:show", **PRIVATE)
    version = tab.images_version
    remove.click(partial(_remove, project, image), version, version, key=f"{key}:drop", **HIDDEN)


class _Caption:
    """The caption of a card; writes the file only when the text changes."""

    def __init__(self, project: Project, image: Path):
        self._project, self._image = project, image
        self._text = project.caption(image)

    def store(self, text: str) -> None:
        if text != self._text:
            self._project.write_caption(self._image, text)
        self._text = text

    def leave(self, text: str, edits: int) -> int:
        self.store(text)
        return edits + 1


def _reading(project: Project, image: Path, text: str, base: str, changes: Mapping[str, Any]) -> str:
    """Show what the model reads of a caption, also of one that is being typed."""
    try:
        data = data_settings(project, base or "pocket", changes)
        return reading_html(project, image, text or "", data, base or "pocket")
    except SdloraError as error:
        return note([str(error)], "bad")


def _remove(project: Project, image: Path, version: int) -> int:
    project.remove(image)
    return version + 1


def card_id(image: Path) -> str:
    """Return the id of the card of ``image``, which needs no escaping."""
    return f"card-{safe_name(image.name, fallback='picture')}"


def findings_list(findings: Sequence[Finding], images: int) -> str:
    """List findings by what they ask a person to do; nothing for a project without ``images``."""
    if not images:
        return ""
    if not findings:
        return f"<div class='findings'><p class='quiet'>{NO_FINDINGS}</p></div>"
    body = ""
    for severity, title in TITLES.items():
        items = "".join(f"<li>{_sentence(finding)}</li>" for finding in findings if finding.severity == severity)
        body += f"<section class='{severity}'><h4>{title}</h4><ul>{items}</ul></section>" if items else ""
    return f"<style>{_marks(findings)}</style><div class='findings'>{body}</div>"


def _sentence(finding: Finding) -> str:
    links = "".join(
        f"<a href='#{escape(card_id(image), quote=True)}'>{escape(image.stem)}</a>"
        for image in finding.images[:MAX_LINKS]
    )
    return escape(finding.text) + (f" <span class='to-cards'>{links}</span>" if links else "")


def _marks(findings: Sequence[Finding]) -> str:
    """Mark the cards that findings concern. The marks are style rules, so that no card is rendered again."""
    marks: dict[str, list[str]] = {}
    for finding in findings:
        for image in finding.images if finding.label else ():
            marks.setdefault(card_id(image), []).append(finding.label)
    return "".join(
        f'[id="{escape(card, quote=True)}"]::before{{content:"{escape(" · ".join(dict.fromkeys(words)))}"}}'
        for card, words in marks.items()
    )
