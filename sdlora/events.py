"""What a run tells: small frozen records, each one line of the run's journal.

The trainer emits them, the journal keeps them, every viewer (command line, page, Python) reads
them. Times are seconds since the epoch for people to read; durations come from a monotonic clock.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

MOST = 1 << 62
"""Above any number that is counted: larger ones do not fit into a float's arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; ``kind`` is the name under which the journal stores it."""

    time: float = field(default_factory=time.time)
    KINDS: ClassVar[dict[str, type["Event"]]] = {}

    def __init_subclass__(cls) -> None:
        Event.KINDS[cls.__name__] = cls

    def to_json(self) -> str:
        return json.dumps({"kind": type(self).__name__, **asdict(self)}, ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> "Event":
        """Raises ValueError for a line that is torn, or of a kind or shape unknown to this version."""
        try:
            values = json.loads(line)
        except RecursionError:
            raise ValueError("not an event: nested too deeply") from None
        cls = Event.KINDS.get(str(values.pop("kind", None))) if isinstance(values, dict) else None
        if cls is None:
            raise ValueError(f"not an event: {line[:80]!r}")
        known = {f.name: f.type for f in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        for name, value in given.items():
            if not _fits(value, known[name]):
                raise ValueError(f"not a {cls.__name__}: its {name} is of another type")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"not a {cls.__name__}: {error}") from None


def _fits(value: object, kind: object) -> bool:
    """Whether a value from a journal, which may be a stranger's, is of a field's type."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST
    if kind is float:
        return isinstance(value, float) or _fits(value, int)
    return isinstance(value, str)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A process took the run up: at step ``step`` of ``steps`` (0 for a fresh run)."""

    step: int
    steps: int
    device: str
    precision: str
    base: str
    images: int
    modules: int
    """Layers that carry an adapter."""
    parameters: int
    """Trainable parameters."""
    share: float
    """Trainable parameters over all parameters of the trained models, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A phase other than training moves on: loading, class images, caching, saving."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something worth knowing that stops nothing."""

    message: str


@dataclass(frozen=True, kw_only=True)
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
    """Bytes that the main process holds on its device; 0 where there is no telling."""


@dataclass(frozen=True, kw_only=True)
class SampleReady(Event):
    """A preview picture was written; ``path`` is relative to the run's folder."""

    step: int
    index: int
    prompt: str
    path: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint was written; ``path`` is relative to the run's folder."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """Stopped on request at ``step``, and saved."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """All steps are done; ``adapter`` is relative to the run's folder."""

    step: int
    adapter: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """The run ended with an error; ``message`` is written for its user."""

    message: str
    exit_code: int


OnEvent = Callable[[Event], None]
OnProgress = Callable[[int, int], None]
"""Told how much is done, of how much in all."""


def unwatched(done: int, total: int) -> None:
    """The ``OnProgress`` of those who do not look."""


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""
