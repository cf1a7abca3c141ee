"""Runs as the page shows them: state from their journals, read incrementally, and sentences on it."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sdlora.api.training import Run, tail_events
from sdlora.errors import FileError
from sdlora.events import (
    CheckpointSaved,
    Event,
    Measured,
    Notice,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    SampleReady,
    StepDone,
    StoppedEarly,
)
from sdlora.filesystem.paths import existing_path, path_inside
from sdlora.formatting import format_duration
from sdlora.signals import SMOOTHING
from sdlora.time_left import TimeLeft
from sdlora.ui.run_measurements import MAX_POINTS, RunMeasurements

REMEMBERED = 128
"""Runs whose state stays in memory; more than the library shows at once."""
STAGES = ("Loading", "Class pictures", "Caching", "Training")
CACHING = {
    "loading the base model": "Loading",
    "making class pictures": "Class pictures",
    "encoding pictures": "Caching",
    "encoding captions": "Caching",
}
"""Stages of the phases before training."""
WITHIN = {"preview": "drawing previews", "saving": "saving", "measuring": "measuring what it has learnt"}
"""Words for the phases between steps."""
WORDS = {
    "new": "Not started yet",
    "queued": "Waiting its turn: it starts as soon as the device is free",
    "stopping": "Stopping: finishing this step and saving",
    "finished": "Finished",
    "stopped": "Stopped and saved",
    "failed": "Failed",
    "interrupted": "Cut off before its end; Resume goes on from the last checkpoint",
}
"""Words for the states of runs that are not running."""


class PreviewImage(NamedTuple):
    """An image that was made during training."""

    step: int
    prompt: str
    path: Path


@dataclass
class RunView:
    """State of a run according to its journal."""

    run: Run
    started: RunStarted | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    steps: int = 0
    left: float | None = None
    memory: int = 0
    """Bytes, at the last step."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    measured: RunMeasurements = field(default_factory=RunMeasurements)
    previews: dict[tuple[int, int], PreviewImage] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    checkpoints: set[int] = field(default_factory=set)
    """Steps at which the run saved."""
    early: StoppedEarly | None = None
    """Why the run ends before its last step, if it does."""
    failure: str = ""
    seconds: float = 0.0
    events_read: int = 0
    """Number of events read, as a version of the state."""
    has_class_images: bool = False
    """True once the run has made class images."""
    phase_left: float | None = None
    """Seconds left of the phase at its pace so far; None before that is known."""
    _time_left: TimeLeft = field(default_factory=TimeLeft)
    _offset: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def end(self) -> int:
        """Number of steps after which the run ends, or has ended."""
        return self.steps if self.early is None else self.early.step

    @property
    def time_left(self) -> str:
        """Text such as `` · 1:05 min left``; "" while it is unknown."""
        if self.left is None:
            return ""
        most = "at most " if self.started and self.started.stop != "never" else ""
        return f" · {most}{format_duration(self.left)} left"

    def refresh(self) -> "RunView":
        """Read the new events of the journal."""
        with self._lock:
            for event, offset in tail_events(self.run.journal, self._offset):
                self._offset = offset
                self.events_read += 1
                self._apply(event)
        return self

    def _apply(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.started, self.steps, self.step, self.left = event, event.steps, event.step, None
                self.losses = [point for point in self.losses if point[0] <= event.step]  # A resume replays steps.
                self.measured.rewind(event.step)
                self.phase, self.failure, self.early = "training", "", None
                if event.step:  # Saved, even if that process was killed before it wrote the event.
                    self.checkpoints.add(event.step)
            case Progress():
                self._progress(event)
            case StepDone():
                self.phase, self.step, self.steps, self.left = "training", event.step, event.steps, event.left
                self.memory = event.memory
                self.losses.append((event.step, event.loss))
            case Measured():
                self.measured.add(event)
            case StoppedEarly():
                self.early, self.left = event, None
            case SampleReady():
                with suppress(FileError):  # A journal from elsewhere may name any file.
                    path = path_inside(self.run.samples, Path(event.path).name)
                    self.previews[event.index, event.step] = PreviewImage(event.step, event.prompt, path)
            case CheckpointSaved():
                self.checkpoints.add(event.step)
            case Notice():
                self.notices.append(event.message)
            case RunFinished():
                self.phase, self.seconds = "", event.seconds
            case RunStopped():
                self.phase, self.step = "", event.step
            case RunFailed():
                self.phase, self.failure = "", event.message

    def _progress(self, event: Progress) -> None:
        self.phase, self.done, self.total = event.phase, event.done, event.total
        self.has_class_images = self.has_class_images or event.phase == "making class pictures"
        self.phase_left = self._time_left.update(event.phase, event.done, event.total, event.time)


class RunViews:
    """Views of the last ``REMEMBERED`` runs, shared by all visitors."""

    def __init__(self) -> None:
        self._views: OrderedDict[tuple[Path, int], RunView] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, run: Run) -> RunView:
        """Return the current view of ``run``. A new run with the name of a deleted one is another run."""
        folder = existing_path(run.folder)
        key = run.folder, folder.stat().st_ino if folder else 0
        with self._lock:
            view = self._views.setdefault(key, RunView(run))
            self._views.move_to_end(key)
            while len(self._views) > REMEMBERED:
                self._views.popitem(last=False)
        return view.refresh()


def describe(view: RunView, state: str) -> str:
    """Describe the state of a run in a sentence."""
    if state == "failed":
        return f"Failed: {view.failure}" if view.failure else "Failed; the end of its log says why"
    if state == "finished":
        if view.early:
            return f"{view.early.sentence}. Finished in {format_duration(view.seconds)}"
        return f"Finished: {view.steps} steps in {format_duration(view.seconds)}"
    if state == "stopped":
        return f"Stopped at step {view.step} and saved; Resume goes on from there"
    if state != "running":
        return WORDS.get(state, state)
    if view.early:
        return f"{view.early.sentence}. Saving"
    if view.phase == "training":
        return f"Training: step {view.step} of {view.steps}{view.time_left}"
    if not view.phase:
        return "Starting"
    left = f" · {format_duration(view.phase_left)} left" if view.phase_left else ""
    where = f"Step {view.step} of {view.steps} · " if view.step and view.phase in WITHIN else ""
    words = WITHIN.get(view.phase, view.phase)
    count = f": {view.done} of {view.total}{left}" if view.total > 1 else ""
    return where + (words if where else words[:1].upper() + words[1:]) + count


def stages(view: RunView, state: str) -> list[tuple[str, str]]:
    """Return the stages of a run, each ``done``, ``now`` or ``next``; class pictures only for runs that make some."""
    if view.phase in CACHING:
        now = STAGES.index(CACHING[view.phase])
    elif state == "finished":
        now = len(STAGES)
    else:
        now = STAGES.index("Training") if view.started else 0
    names = [(n, name) for n, name in enumerate(STAGES) if view.has_class_images or name != "Class pictures"]
    return [(name, "done" if n < now else "now" if n == now else "next") for n, name in names]


def short_status(view: RunView, state: str) -> str:
    """Describe the state for the header: ``412/800 · 3:05 left``."""
    if state == "running" and view.steps and view.step:
        return f"{view.step}/{view.steps}{view.time_left}"
    return "starting" if state == "running" else state


def fraction_done(view: RunView, state: str) -> float | None:
    """Return the share that is done, 0 to 1; None if it is unknown."""
    if state == "finished":
        return 1.0
    if view.phase not in ("", "training") and view.total > 1 and not view.step:
        return view.done / view.total
    return view.step / view.steps if view.steps else None


def loss_curve(losses: Sequence[tuple[int, float]]) -> dict[str, list[tuple[int, float]]]:
    """Return two series of at most ``MAX_POINTS`` points: means of neighbouring steps, and a moving average."""
    size = -(-len(losses) // MAX_POINTS) or 1
    raw, smooth = [], []
    average = None
    for start in range(0, len(losses), size):
        part = losses[start : start + size]
        for _, loss in part:
            average = loss if average is None else SMOOTHING * average + (1 - SMOOTHING) * loss
        step = part[-1][0]
        raw.append((step, sum(loss for _, loss in part) / len(part)))
        smooth.append((step, average or 0.0))
    return {"loss": raw, "smoothed": smooth}
