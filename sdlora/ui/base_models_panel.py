"""How to get a base model: cards of known ones, a download by hub id, and where to put a folder or a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.models import (
    KNOWN_BASES,
    DownloadJob,
    KnownBase,
    cache_folder,
    download_job,
    downloaded_bases,
    models_folder,
)
from sdlora.formatting import format_bytes
from sdlora.ui import job_widget, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.job_widget import JobWidget
from sdlora.ui.listeners import HIDDEN, Values


@dataclass(frozen=True)
class BaseCard:
    """The components of one known base model."""

    known: KnownBase
    widget: JobWidget
    use: gr.Button


@dataclass(frozen=True)
class BaseModelsPanel:
    """The cards, and the events after which the lists of base models may have another one."""

    cards: Sequence[BaseCard]
    downloads: Sequence[Any]


def build(app: AppState, base: gr.Dropdown) -> BaseModelsPanel:
    """Lay the panel out below the dropdown ``base``, which lists what is downloaded."""
    with gr.Accordion("Get a base model", open=False, elem_id="get-base"):
        gr.HTML(_ways(app))
        cards = [_card(known) for known in KNOWN_BASES]
        other = gr.Textbox(
            "", label="Another model's hub id", placeholder="owner/name", max_lines=1, elem_id="download-id",
            info="A diffusers model of one of these families; only its .safetensors weights and configs are fetched",
        )  # fmt: skip
        other_widget = job_widget.job_widget("Download", "download-other", "secondary")
    downloads = [_wire_card(app, card, base) for card in cards]
    downloads.append(_wire(app, other_widget, base, {other}, lambda values: download_job(values[other] or "")))
    return BaseModelsPanel(cards, downloads)


def wire(demo: gr.Blocks, panel: BaseModelsPanel) -> None:
    """Show on each card whether its model is downloaded, whenever the page is loaded."""
    outputs = [component for card in panel.cards for component in (card.widget.go, card.use)]
    demo.load(partial(_show_downloaded, panel.cards), None, outputs, **HIDDEN)


def _ways(app: AppState) -> str:
    """Return the ways to a base model, for machines with and without a connection, as HTML."""
    folder, cache = (escape(str(path)) for path in (models_folder(app.data_dir), cache_folder()))
    return (
        "<div class='ways'><p>The base model is what your adapter changes. Any of these is one:</p><ul>"
        "<li><b>A hub id</b>, such as those below. It is downloaded once, by the button or by the first run, "
        f"to <code>{cache}</code>. The button needs this page to stay open; a download that ended early goes on "
        "where it was.</li>"
        "<li><b>A folder</b> in diffusers' layout, or <b>a single .safetensors file</b>, as A1111 and ComfyUI use. Put "
        f"it into <code>{folder}</code> and reload the page, or write its path above.</li></ul>"
        "<p>Without a connection: download on another machine, then copy the folder or the file to "
        f"<code>{folder}</code>. A single file also needs CLIP's <code>vocab.json</code> and <code>merges.txt</code>, "
        f"in <code>{folder}/tokenizer</code>.</p></div>"
    )


def _card(known: KnownBase) -> BaseCard:
    with gr.Column(elem_classes="base-card", elem_id=f"base-{known.family}"):
        gr.HTML(_describe(known))
        widget = job_widget.job_widget(_download_label(known), f"download-{known.family}", "secondary")
        use = gr.Button(f"Use {known.title}", size="sm", visible=False, elem_id=f"use-{known.family}")
    return BaseCard(known, widget, use)


def _describe(known: KnownBase) -> str:
    access = "open to all, no login" if known.access == "open" else "gated: accept its terms on the hub, then log in"
    facts = (
        f"{known.native_size} px", f"{format_bytes(known.bytes)} to download",
        f"for a graphics card of {known.card_gigabytes} GB", f"{known.licence} licence", access,
    )  # fmt: skip
    return (
        f"<h4>{escape(known.title)}</h4><p>{escape(known.purpose)}</p><p class='quiet'>{escape(' · '.join(facts))}</p>"
        f"<p><code>{escape(known.id)}</code></p>"
    )


def _download_label(known: KnownBase) -> str:
    return f"Download {known.title}"


def _wire_card(app: AppState, card: BaseCard, base: gr.Dropdown) -> Any:
    card.use.click(
        lambda: gr.update(choices=app.base_choices(), value=card.known.id), None, base, **HIDDEN
    )  # fmt: skip
    done = _wire(app, card.widget, base, set(), lambda values: download_job(card.known.id))
    done.success(partial(_show_downloaded, [card]), None, [card.widget.go, card.use], **HIDDEN)
    return done


def _wire(
    app: AppState, widget: JobWidget, base: gr.Dropdown, inputs: set[Block], start: Callable[[Values], DownloadJob]
) -> Any:
    finish = partial(_finish, app, widget, base)
    return job_widget.wire(app, widget, start, finish, inputs, [base], job_widget.DOWNLOADS)


def _finish(app: AppState, widget: JobWidget, base: gr.Dropdown, job: DownloadJob) -> Values:
    message = page_html.note([f"{job.request['base']} is downloaded; the lists of base models have it."], "good")
    return {widget.status: message, base: app.base_update()}


def _show_downloaded(cards: Sequence[BaseCard]) -> Values:
    """Offer to use what is downloaded, and to download what is not."""
    there, updates = downloaded_bases(), Values()
    for card in cards:
        has = card.known.id in there
        label = f"{card.known.title} is downloaded" if has else _download_label(card.known)
        updates |= {card.widget.go: gr.update(value=label, interactive=not has), card.use: gr.update(visible=has)}
    return updates
