"""Events of a job: small frozen records, each written as one line of JSON.

Every process of this package (training, inference, tools, profiling) reports by these events: to a run's journal, to a
pipe or to a log. Every front end reads them with ``Event.from_json``. ``time`` is in seconds since the epoch, for
people to read; durations come from a monotonic clock.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, dataclass_transform

from sdlora.filesystem.reading import parse_json
from sdlora.formatting import format_bytes, pluralize

LARGEST_NUMBER = 1 << 62
"""Upper bound of the numbers in an event: larger ones do not fit into a float's arithmetic."""
REPORT_SECONDS = 0.25
"""Seconds between two reports of one phase's progress."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events, which are dataclasses by it; ``kind`` is the name under which the journal stores one."""

    time: float = field(default_factory=time.time)
    KINDS: ClassVar[dict[str, type["Event"]]] = {}

    def __init_subclass__(cls) -> None:
        Event.KINDS[cls.__name__] = dataclass(frozen=True, kw_only=True)(cls)

    def to_json(self) -> str:
        """Return the event as one line of JSON, without its end."""
        return json.dumps({"kind": type(self).__name__, **asdict(self)}, ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> "Event":
        """Parse a line. Raises ValueError for one that is torn, or of a kind or shape unknown to this version."""
        values = parse_json(line)
        cls = Event.KINDS.get(str(values.pop("kind", None))) if isinstance(values, dict) else None
        if cls is None:
            raise ValueError(f"not an event: {line[:80]!r}")
        types = _field_types(cls.__name__)
        given = {name: value for name, value in values.items() if name in types}
        for name, value in given.items():
            if not _has_type(value, types[name]):
                raise ValueError(f"not a {cls.__name__}: its {name} is of another type")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"not a {cls.__name__}: {error}") from None


@lru_cache(maxsize=128)
def _field_types(kind: str) -> dict[str, object]:
    """Return the types of the fields of ``kind`` by name; each line of a journal asks for them."""
    return {f.name: f.type for f in fields(Event.KINDS[kind])}


def _has_type(value: object, kind: object) -> bool:
    """Check a value from a journal, which anyone may have written, against the type of its field."""
    if kind is Any:
        return True
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER
    if kind is float:
        return isinstance(value, float) or _has_type(value, int)
    return isinstance(value, str)


def read_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Parse lines as they come; torn or unknown ones, such as what a library prints, are passed over."""
    for line in lines:
        try:
            yield Event.from_json(line.decode())
        except ValueError:
            continue


class JobStarted(Event):
    """Job ``number`` of a process that serves several has begun; the events that follow are of this job."""

    number: int


class Waiting(Event):
    """The job waits, usually for a device; ``message`` says what for."""

    message: str


class Progress(Event):
    """A phase of the job moves on; of a run, a phase other than training. ``total`` is 0 where it cannot be counted."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""
    """``bytes`` for amounts of data, empty for counts."""

    @property
    def amounts(self) -> tuple[str, str]:
        """Texts of the amount done and of the total."""
        write = format_bytes if self.unit == "bytes" else str
        return write(self.done), write(self.total)


class Notice(Event):
    """A message for the user that stops nothing."""

    message: str


class Result(Event):
    """A result, as JSON has it. A job on several files gives one for each; else the last one counts."""

    value: Any


class Finished(Event):
    """The job is done."""


class Cancelled(Event):
    """The job was stopped on request."""


class Failed(Event):
    """The job ended with an error: a message for the user, and the exit code of its kind (``sdlora.errors``)."""

    message: str
    exit_code: int


class RunStarted(Event):
    """A process began to train the run at step ``step`` of ``steps`` (0 for a new run)."""

    step: int
    steps: int
    device: str
    precision: str
    base: str
    images: int
    modules: int
    """Number of layers that have an adapter."""
    parameters: int
    """Number of trainable parameters."""
    share: float
    """Trainable parameters over all parameters of the trained models, 0 to 1."""
    stop: str = "never"
    """Rule by which the run may end before its last step (``train.stop``)."""


class StepDone(Event):
    """One optimizer step is done."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    """Duration of this step."""
    left: float
    """Estimated seconds until the last step is done."""
    memory: int = 0
    """Bytes that the main process uses on its device; 0 where that cannot be measured."""
    gradient_norm: float = 0.0
    """Norm of all gradients before they were clipped; 0 in journals of earlier versions."""


class Measured(Event):
    """Losses on fixed noise and sizes of the updates after ``step`` steps; ``sdlora.signals`` reads the values."""

    step: int
    times: Any
    """Timesteps at which each picture was measured."""
    pictures: Any
    """Loss of the base and of the adapted model for each picture, at each of ``times``."""
    updates: Any
    """Norm and effective rank of the updates of each block."""


class StoppedEarly(Event):
    """The run ends at ``step`` of ``steps``, by ``train.stop``. What a normal end writes follows, then RunFinished."""

    step: int
    steps: int
    rule: str
    """``plateau``, of trained images, or ``held_out``."""
    tolerance: float
    best_step: int
    best: float
    """Lowest loss ratio before those that decided, measured after ``best_step`` steps."""
    ratios: Any
    """Steps and loss ratios that decided: ``[[step, ratio], ...]``."""

    @property
    def sentence(self) -> str:
        """Description of where the run ends, and why, without a full stop."""
        count = pluralize(len(self.ratios) if isinstance(self.ratios, list) else 0, "measurement")
        pictures, then = ("held-out", "higher") if self.rule == "held_out" else ("trained", "nowhere lower")
        since = f"{then} by more than {self.tolerance:g} in the last {count}"
        lowest = f"{self.best:.3f} of the base's at step {self.best_step}"
        end = f"Stopped early at step {self.step} of {self.steps}"
        return f"{end}: the loss on {pictures} pictures was {lowest}, and {since}"


class SampleReady(Event):
    """A preview image was written; ``path`` is relative to the run's folder."""

    step: int
    index: int
    prompt: str
    path: str


class CheckpointSaved(Event):
    """A checkpoint was written; ``path`` is relative to the run's folder."""

    step: int
    path: str


class RunStopped(Cancelled):
    """The run was stopped on request at ``step``, and saved."""

    step: int


class RunFinished(Finished):
    """All steps are done; ``adapter`` is relative to the run's folder."""

    step: int
    adapter: str
    seconds: float


class RunFailed(Failed):
    """The run ended with an error."""


OnEvent = Callable[[Event], None]
OnProgress = Callable[[int, int], None]
"""Callback with the amount done and the total."""


def ignore(event: Event) -> None:
    """Do nothing: the default listener."""


def unwatched(done: int, total: int) -> None:
    """Do nothing: the default ``OnProgress``."""


def report_progress(on_event: OnEvent, phase: str, every: float = REPORT_SECONDS, unit: str = "") -> OnProgress:
    """Return a callable that reports a phase's progress, at most once in ``every`` seconds, and always its end."""
    last = float("-inf")

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > every:
            last = time.monotonic()
            on_event(Progress(phase=phase, done=done, total=total, unit=unit))

    return report
