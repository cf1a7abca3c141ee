"""The Create tab: the form, the progress of its request, and the images that were made."""

from dataclasses import dataclass
from functools import partial

import gradio as gr
from gradio.blocks import Block

from sdlora.api.generation import GenerationRequest, JobStatus
from sdlora.errors import SdloraError
from sdlora.formatting import format_duration
from sdlora.generation.infotext import RecalledSettings
from sdlora.ui import create_form, gallery_panel, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.create_form import CreateForm
from sdlora.ui.gallery_panel import GalleryPanel
from sdlora.ui.listeners import HIDDEN, Values

WORDS = {
    "queued": "Getting ready",
    "waiting": "Waiting",
    "loading": "Loading the base model",
    "drawing": "Drawing",
    "done": "Done",
    "cancelled": "Cancelled; what was finished is kept",
    "failed": "Failed",
}


@dataclass(frozen=True)
class CreateTab:
    """Components of the tab."""

    form: CreateForm
    gallery: GalleryPanel
    number: gr.State
    """Number of the current request."""
    timer: gr.Timer

    @property
    def adapters(self) -> list[gr.Dropdown]:
        return self.form.rows.adapters

    @property
    def base(self) -> gr.Dropdown:
        return self.form.base

    @property
    def started(self) -> list[Block]:
        """Components that a new request updates."""
        return [self.number, self.form.status, self.form.create, self.form.cancel, self.timer]

    @property
    def generated(self) -> list[Block]:
        """Components that ``generate_with`` updates."""
        return [*self.form.filled, *self.started]

    @property
    def live(self) -> list[Block]:
        """Components that the timer updates."""
        buttons = [self.form.create, self.form.cancel]
        return [self.form.status, *self.gallery.images, *buttons, self.timer]


def build(app: AppState, demo: gr.Blocks) -> CreateTab:
    """Lay the tab out and wire it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = create_form.build(app)
            drop = gallery_panel.build_drop()
        with gr.Column(scale=3, min_width=320):
            gallery = gallery_panel.build()
    tab = CreateTab(form, gallery, gr.State(0), gr.Timer(0.7, active=False))
    gallery_panel.wire(app, form, gallery, drop)
    _wire(app, demo, tab)
    return tab


def generate_with(app: AppState, tab: CreateTab, name: str, prompt: str) -> Values:
    """Choose the adapter ``name`` alone, with its base and ``prompt``, and queue a request."""
    app.refresh()  # The adapter may be brand-new.
    recalled = RecalledSettings(prompt or "", scales={name: 1.0}, numbers={"seed": create_form.START.seed})
    base = create_form.base_called(app, recalled) or create_form.START.base
    request = GenerationRequest(prompt=recalled.prompt, base=base)
    return {**create_form.fill(app, tab.form, recalled), **_submit(app, tab, request, [(name, 1.0)])}


def _wire(app: AppState, demo: gr.Blocks, tab: CreateTab) -> None:
    form, gallery = tab.form, tab.gallery
    gr.on(
        [form.create.click, form.prompt.submit, form.negative.submit], partial(_create, app, tab), form.inputs,
        tab.started, **HIDDEN,
    )  # fmt: skip
    form.cancel.click(partial(_cancel, app), tab.number, None, **HIDDEN)
    tab.timer.tick(
        partial(_poll, app, tab), [tab.number, gallery.limit], tab.live, concurrency_limit=None, **HIDDEN
    )  # fmt: skip
    demo.load(app.base_update, None, form.base, **HIDDEN)
    demo.load(partial(_attach, app, tab), gallery.limit, [tab.number, tab.timer, *gallery.images], **HIDDEN)
    form.last.click(partial(gallery_panel.last_seed, app), tab.number, form.seed, **HIDDEN)


def _create(app: AppState, tab: CreateTab, values: Values) -> Values:
    """Queue the request that is filled in; the form stays as it is."""
    return _submit(app, tab, *create_form.request(tab.form, values))


def _submit(app: AppState, tab: CreateTab, request: GenerationRequest, chosen: list[tuple[str, float]]) -> Values:
    try:
        status = app.generate(request, chosen)
    except SdloraError as error:
        return {tab.form.status: page_html.note([str(error)], "bad")}
    return {
        tab.number: status.number, tab.form.status: describe(app, status), **_busy(tab, True),
        tab.timer: gr.Timer(active=True),
    }  # fmt: skip


def _busy(tab: CreateTab, busy: bool) -> Values:
    return {tab.form.create: gr.update(interactive=not busy), tab.form.cancel: gr.update(visible=busy)}


def _cancel(app: AppState, number: int) -> None:
    app.inference.cancel(number)


def _attach(app: AppState, tab: CreateTab, limit: int) -> Values:
    """Show the images, and the running request, on a page that was just loaded."""
    status = app.inference.newest()
    active = status is not None and not status.ended and not status.request.grid
    return {
        tab.number: status.number if status and active else 0, tab.timer: gr.Timer(active=active),
        **gallery_panel.show(app, tab.gallery, limit),
    }  # fmt: skip


def _poll(app: AppState, tab: CreateTab, number: int, limit: int) -> Values:
    """Describe the request; at its end, show its images and stop the timer."""
    status = app.inference.status(number)
    if status is None or status.ended:
        return {
            tab.form.status: describe(app, status) if status else "", **gallery_panel.show(app, tab.gallery, limit),
            **_busy(tab, False), tab.timer: gr.Timer(active=False),
        }  # fmt: skip
    return {tab.form.status: describe(app, status), **_busy(tab, True)}


def describe(app: AppState, status: JobStatus) -> str:
    """Return the progress or the result of a request as a note."""
    if status.ended:
        kind = {"done": "good", "failed": "bad"}.get(status.state, "info")
        count = f"{len(status.paths)} picture{'s' if len(status.paths) != 1 else ''}"
        first = {"failed": "", "done": f"{count} drawn."}.get(status.state, f"{WORDS[status.state]}.")
        return page_html.note([first, status.message], kind)
    ahead = app.inference.queued_before(status.number)
    words = f"Waiting its turn: {ahead} before this one" if status.state == "queued" and ahead else ""
    words = words or status.message or WORDS[status.state]
    if status.state == "drawing" and status.total:
        words = f"{status.message or WORDS['drawing']}: step {status.done} of {status.total}"
        words += f" · {format_duration(status.left)} left" if status.left is not None else ""
    return page_html.progress_note(words, status.done / status.total if status.total else None)
