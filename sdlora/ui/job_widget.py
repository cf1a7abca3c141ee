"""Tool jobs on the page: one per visitor at a time, with progress, time left, and a way to cancel."""

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapter_jobs import ToolJob
from sdlora.errors import SdloraError
from sdlora.events import Event, Progress
from sdlora.formatting import format_duration
from sdlora.time_left import TimeLeft
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, CancellableJob, cache_file
from sdlora.ui.listeners import HIDDEN, Values

PATIENCE_SECONDS = 1.0
"""Seconds before the time left is shown."""


@dataclass(frozen=True)
class Lane:
    """A kind of jobs, which waits for no other kind: a visitor has one of them at a time, all visitors ``limit``."""

    name: str
    limit: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the listeners that start such jobs."""
        return {"concurrency_id": self.name, "concurrency_limit": self.limit}

    def key(self, request: gr.Request) -> str:
        """Return the name of the visitor who sent ``request``, for ``AppState.jobs``."""
        return f"{request.session_hash or ''}:{self.name}"


TOOLS = Lane("tools", 2)
"""Each takes a processor and a model's memory."""
DOWNLOADS = Lane("downloads", 4)
"""Each takes nothing but time, often hours."""


@dataclass(frozen=True)
class JobWidget:
    """Buttons that start and cancel a job, and its status."""

    go: gr.Button
    cancel: gr.Button
    status: gr.HTML


class FileJob:
    """A job that writes a file called ``name``; at its end ``file`` is a copy in the page's cache."""

    def __init__(self, job: ToolJob, key: str, name: str):
        self.job, self.key, self.name = job, key, name
        self.file = ""

    def __iter__(self) -> Generator[Event]:
        with tempfile.TemporaryDirectory(prefix="sdlora-") as folder:
            self.job.request[self.key] = Path(folder, self.name)
            yield from self.job
            self.file = cache_file(Path(folder, self.name))

    def stop(self) -> None:
        self.job.stop()


class JobProgressHtml:
    """Formats progress events as HTML, with the time left of the phase."""

    def __init__(self) -> None:
        self._time_left = TimeLeft()

    def __call__(self, event: Progress) -> str:
        left = self._time_left.update(event.phase, event.done, event.total)
        words = event.phase[:1].upper() + event.phase[1:]
        if not event.total:
            return page_html.progress_note(words, None)
        rest = f" · {format_duration(left)} left" if self._time_left.spent > PATIENCE_SECONDS and left else ""
        return page_html.progress_note(f"{words}: {' of '.join(event.amounts)}{rest}", event.done / event.total)


def job_widget(word: str, name: str, variant: Literal["primary", "secondary"] = "primary") -> JobWidget:
    """Lay out a button labelled ``word``, one that cancels, and a status below."""
    with gr.Row():
        go = gr.Button(word, variant=variant, elem_id=f"{name}-button")
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel")
    return JobWidget(go, cancel, gr.HTML(elem_id=f"{name}-status"))


def follow(app: AppState, visitor: str, job: CancellableJob) -> Iterator[str]:
    """Run ``job`` and yield its progress as HTML; closing the iterator ends the job.

    Raises BusyError while the same ``visitor`` has another job, and the errors of the job.
    """
    with app.track_job(visitor, job):
        progress = JobProgressHtml()
        yield page_html.progress_note("Starting", None)
        with closing(iter(job)) as events:
            for event in events:
                if isinstance(event, Progress):
                    yield progress(event)


def wire(
    app: AppState,
    widget: JobWidget,
    start: Callable[[Values], Any],
    finish: Callable[[Any], Values],
    inputs: set[Block],
    outputs: Sequence[Block] = (),
    lane: Lane = TOOLS,
) -> Any:
    """Let a click ``start`` a job from ``inputs`` and show its progress; return the event.

    ``finish`` returns the values of ``widget.status`` and ``outputs`` for the finished job. With outputs, an error also
    stops the listeners that follow the event.
    """

    def run(values: Values, request: gr.Request) -> Iterator[Values]:  # Gradio finds the request by its annotation.
        hidden: Values = {widget.cancel: gr.update(visible=False)}
        try:
            job = start(values)
            for status in follow(app, lane.key(request), job):
                yield {widget.status: status, widget.cancel: gr.update(visible=True)}
            finished = finish(job)
        except SdloraError as error:
            yield {widget.status: page_html.note([str(error)], "bad"), **hidden}
            if outputs:
                raise gr.Error(str(error), print_exception=False) from None
            return
        yield {**finished, **hidden}

    def cancel(request: gr.Request) -> None:
        app.cancel_job(lane.key(request))

    widget.cancel.click(cancel, None, None, **HIDDEN)
    return widget.go.click(run, inputs, [widget.status, widget.cancel, *outputs], **lane.options, **HIDDEN)
