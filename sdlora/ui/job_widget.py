"""Errands on the page: one a person at a time, with a bar, the time that is left, and a way out."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from sdlora.api.adapter_jobs import ToolJob
from sdlora.errors import SdloraError
from sdlora.events import Event, Progress
from sdlora.formatting import format_duration
from sdlora.time_left import TimeLeft
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, CancellableJob, cache_file
from sdlora.ui.listeners import HIDDEN

AT_ONCE: dict[str, Any] = {"concurrency_id": "tools", "concurrency_limit": 2}
"""Errands of all persons together: each takes a processor and a model's memory; the others wait their turn."""
PATIENCE_SECONDS = 1.0
"""How long nothing is said of the time that is left."""


@dataclass(frozen=True)
class JobWidget:
    """Where an errand is begun and seen."""

    go: gr.Button
    cancel: gr.Button
    status: gr.HTML


class FileJob:
    """A job that writes a file, called ``name``: when it is done, ``file`` is its copy in the page's cache."""

    def __init__(self, job: ToolJob, key: str, name: str):
        self.job, self.key, self.name = job, key, name
        self.file = ""

    def __iter__(self) -> Generator[Event]:
        folder = Path(tempfile.mkdtemp(prefix="sdlora-"))
        try:
            self.job.request[self.key] = folder / self.name
            yield from self.job
            self.file = cache_file(folder / self.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        self.job.stop()


class JobProgressHtml:
    """Progress events as HTML, with the time that each phase still takes."""

    def __init__(self) -> None:
        self._time_left = TimeLeft()

    def __call__(self, event: Progress) -> str:
        left = self._time_left.update(event.phase, event.done, event.total)
        words = event.phase[:1].upper() + event.phase[1:]
        if not event.total:
            return page_html.progress_note(words, None)
        told = f" · {format_duration(left)} left" if self._time_left.spent > PATIENCE_SECONDS and left else ""
        return page_html.progress_note(f"{words}: {event.done} of {event.total}{told}", event.done / event.total)


def job_widget(word: str, name: str, variant: Literal["primary", "secondary"] = "primary") -> JobWidget:
    """A button that says ``word``, one that cancels, and the words about it below."""
    with gr.Row():
        go = gr.Button(word, variant=variant, elem_id=f"{name}-button")
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel")
    return JobWidget(go, cancel, gr.HTML(elem_id=f"{name}-status"))


def follow(app: AppState, person: str, errand: CancellableJob) -> Iterator[str]:
    """Where ``errand`` stands, as HTML, until it is done; its process ends with whoever looks.

    Raises BusyError while the same ``person`` has another one, and what the errand raises.
    """
    with app.track_job(person, errand):
        tell = JobProgressHtml()
        yield page_html.progress_note("Starting", None)
        with closing(iter(errand)) as events:
            for event in events:
                if isinstance(event, Progress):
                    yield tell(event)


def wire(
    app: AppState,
    place: JobWidget,
    begin: Callable[..., Any],
    done: Callable[[Any], list[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any] = (),
) -> Any:
    """Let a click ``begin`` an errand with the values of ``inputs``, and show where it stands; returns the event.

    ``done`` gives the last words about it, and values for ``outputs``. Where there are outputs, what goes wrong also
    stops what would follow.
    """
    nothing = [gr.skip()] * len(outputs)

    def act(request: gr.Request, *values: Any) -> Iterator[list[Any]]:  # Gradio finds the request by its annotation.
        hide = gr.update(visible=False)
        try:
            errand = begin(*values)
            for told in follow(app, request.session_hash or "", errand):
                yield [told, gr.update(visible=True), *nothing]
            words, *found = done(errand)
        except SdloraError as error:
            yield [page_html.note([str(error)], "bad"), hide, *nothing]
            if outputs:
                raise gr.Error(str(error), print_exception=False) from None
            return
        yield [words, hide, *found]

    def leave(request: gr.Request) -> None:
        app.cancel_job(request.session_hash or "")

    place.cancel.click(leave, None, None, **HIDDEN)
    return place.go.click(act, list(inputs), [place.status, place.cancel, *outputs], **AT_ONCE, **HIDDEN)
