"""The third tab: prompt, adapters with a slider each, Create, and how it goes."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from sdlora.api.generation import GenerationRequest, JobStatus
from sdlora.errors import SdloraError
from sdlora.formatting import format_duration
from sdlora.generation.infotext import RecalledSettings
from sdlora.ui import create_form as fields
from sdlora.ui import gallery_panel, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.create_form import CreateForm
from sdlora.ui.create_form import adapter_updates as adapter_updates
from sdlora.ui.gallery_panel import GalleryPanel
from sdlora.ui.listeners import HIDDEN

WORDS = {
    "queued": "Getting ready",
    "waiting": "Waiting",
    "loading": "Loading the base model",
    "drawing": "Drawing",
    "done": "Done",
    "cancelled": "Cancelled; what was finished is kept",
    "failed": "Failed",
}
Pace = tuple[int, float, int]
"""Of a request: its number, and when how many steps were first seen done."""


@dataclass(frozen=True)
class CreateTab:
    """The components that are wired or brought up to date."""

    inputs: CreateForm
    results: GalleryPanel
    ticket: gr.State
    pace: gr.State
    timer: gr.Timer

    @property
    def adapters(self) -> list[gr.Dropdown]:
        return self.inputs.adapters

    @property
    def base(self) -> gr.Dropdown:
        return self.inputs.base

    @property
    def started(self) -> list[Any]:
        """What a request that was just made gives new values to."""
        return [self.ticket, self.inputs.status, self.inputs.create, self.inputs.cancel, self.timer]

    @property
    def drawn(self) -> list[Any]:
        """What ``draw_with`` gives new values to."""
        return [*self.inputs.filled, *self.started]

    @property
    def live(self) -> list[Any]:
        buttons = [self.inputs.create, self.inputs.cancel]
        return [self.inputs.status, *self.results.shown, *buttons, self.timer, self.pace]


def build(app: AppState, demo: gr.Blocks) -> CreateTab:
    """Lay the tab out and wire it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            inputs = fields.build(app)
            reading = gallery_panel.build_reading()
        with gr.Column(scale=3, min_width=320):
            shown = gallery_panel.build()
    timer = gr.Timer(0.7, active=False)
    tab = CreateTab(inputs, shown, gr.State(0), gr.State((0, 0.0, 0)), timer)
    gallery_panel.wire(app, inputs, shown, reading)
    _wire(app, demo, tab)
    return tab


def draw_with(app: AppState, name: str, prompt: str) -> list[Any]:
    """Choose adapter ``name`` alone, with its base and ``prompt``, and begin to draw: new values for
    ``CreateTab.drawn``.

    For a button of another tab: ``button.click(partial(draw_with, app), [run, prompt], tab.drawn)``.
    """
    app.refresh()  # It may have been finished just now.
    wanted = RecalledSettings(prompt or "", scales={name: 1.0}, numbers={"seed": fields.START.seed})
    base = fields.base_called(app, wanted) or fields.START.base
    request = GenerationRequest(prompt=wanted.prompt, base=base)
    return [*fields.fill(app, wanted), *_submit(app, request, [(name, 1.0)])]


def _wire(app: AppState, demo: gr.Blocks, tab: CreateTab) -> None:
    inputs, shown = tab.inputs, tab.results
    gr.on(
        [inputs.create.click, inputs.prompt.submit, inputs.negative.submit], partial(_create, app), inputs.values,
        tab.started, **HIDDEN,
    )  # fmt: skip
    inputs.cancel.click(partial(_cancel, app), tab.ticket, None, **HIDDEN)
    tab.timer.tick(partial(_poll, app), [tab.ticket, tab.pace, shown.most], tab.live, concurrency_limit=None, **HIDDEN)
    demo.load(app.base_update, None, inputs.base, **HIDDEN)
    demo.load(partial(_attach, app), shown.most, [tab.ticket, tab.timer, *shown.shown], **HIDDEN)
    inputs.last.click(partial(gallery_panel.last_seed, app), tab.ticket, inputs.seed, **HIDDEN)


def _create(app: AppState, *values: Any) -> list[Any]:
    """Queue a request. What was filled in stays as it is, whatever comes of it."""
    return _submit(app, *fields.request(*values))


def _submit(app: AppState, request: GenerationRequest, chosen: list[tuple[str, float]]) -> list[Any]:
    """New values for ``CreateTab.started``."""
    try:
        ticket = app.generate(request, chosen)
    except SdloraError as error:
        return [gr.skip(), page_html.note([str(error)], "bad"), gr.skip(), gr.skip(), gr.skip()]
    return [
        ticket.number, told(app, ticket), gr.update(interactive=False), gr.update(visible=True), gr.Timer(active=True),
    ]  # fmt: skip


def _cancel(app: AppState, number: int) -> None:
    app.inference.cancel(number)


def _attach(app: AppState, most: int) -> list[Any]:
    """After a load: the pictures that there are, and the request that is under way."""
    ticket = app.inference.newest()
    active = ticket is not None and not ticket.ended and not ticket.request.grid
    return [ticket.number if ticket and active else 0, gr.Timer(active=active), *gallery_panel.show(app, most)]


def _poll(app: AppState, number: int, pace: Pace, most: int) -> list[Any]:
    """Where the request stands; at its end the pictures are shown and the timer rests."""
    ticket = app.inference.ticket(number)
    if ticket is None or ticket.ended:
        said = told(app, ticket) if ticket else ""
        rest = [gr.update(interactive=True), gr.update(visible=False), gr.Timer(active=False), pace]
        return [said, *gallery_panel.show(app, most), *rest]
    now = time.monotonic()
    if ticket.state == "drawing" and ticket.done and pace[0] != number:
        pace = (number, now, ticket.done)
    said = told(app, ticket, left(ticket, pace, now))
    return [said, gr.skip(), gr.skip(), gr.update(interactive=False), gr.update(visible=True), gr.skip(), pace]


def left(ticket: JobStatus, pace: Pace, now: float) -> float | None:
    """Seconds that ``ticket`` still takes at its pace so far, or None if there is no telling yet."""
    number, since, done = pace
    if number != ticket.number or ticket.done <= done:
        return None
    return (now - since) / (ticket.done - done) * (ticket.total - ticket.done)


def told(app: AppState, ticket: JobStatus, seconds: float | None = None) -> str:
    """Where a request stands, in plain words."""
    if ticket.ended:
        kind = {"done": "good", "failed": "bad"}.get(ticket.state, "info")
        count = f"{len(ticket.paths)} picture{'s' if len(ticket.paths) != 1 else ''}"
        first = {"failed": "", "done": f"{count} drawn."}.get(ticket.state, f"{WORDS[ticket.state]}.")
        return page_html.note([first, ticket.message], kind)
    ahead = app.inference.queued_before(ticket.number)
    words = f"Waiting its turn: {ahead} before this one" if ticket.state == "queued" and ahead else ""
    words = words or ticket.message or WORDS[ticket.state]
    if ticket.state == "drawing" and ticket.total:
        words = f"{ticket.message or WORDS['drawing']}: step {ticket.done} of {ticket.total}"
        words += f" · {format_duration(seconds)} left" if seconds is not None else ""
    return page_html.progress_note(words, ticket.done / ticket.total if ticket.total else None)
