"""Requests to an inference process, and the status of the job that each becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sdlora.events import Cancelled, Event, Failed, Finished, Notice, Progress, Result, Waiting
from sdlora.families.settings import BaseName, Model
from sdlora.generation.settings import Engine, GenerationSettings

State = Literal["queued", "waiting", "loading", "drawing", "done", "cancelled", "failed"]
ENDED: frozenset[State] = frozenset(("done", "cancelled", "failed"))


class AdapterChoice(NamedTuple):
    """An adapter in a request: its name in prompts, its file, and its scale."""

    name: str
    path: str
    scale: float = 1.0


class GenerationRequest(GenerationSettings):
    """Settings, base and adapters of images to generate: plain values that travel as JSON."""

    count: int = Field(default=1, ge=1, le=1000)
    """Number of images; each has the next seed."""

    base: BaseName = "pocket"
    """Base model: `pocket`, a diffusers folder, a .safetensors file or a hub id."""

    adapters: tuple[AdapterChoice, ...] = Field(default=(), max_length=100)
    """Adapters in the order of loading."""

    grid: str = ""
    """Folder of a grid to fill (``generation.xyz_grid``) instead of images of the prompt."""

    base_settings: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of ``Model`` beside its name, as far as they are not as by default."""

    engine: Mapping[str, str] = Field(default_factory=dict)
    """Settings of ``Engine``, as far as they are not as by default."""

    @property
    def model(self) -> Model:
        """The base as a section."""
        return Model.checked(base=self.base, **self.base_settings)

    @property
    def engine_settings(self) -> Engine:
        """Settings of the computation, as a section."""
        return Engine.checked(**self.engine)

    @model_validator(mode="after")
    def _require_sections(self) -> Self:
        """Raise ConfigError for settings of the base or the computation that are none."""
        _ = self.model, self.engine_settings
        return self


@dataclass(frozen=True)
class JobStatus:
    """State of a generation job. ``message`` says what is under way, what it waits for, or why it failed."""

    number: int
    request: GenerationRequest
    state: State = "queued"
    message: str = ""
    done: int = 0
    total: int = 0
    """Sampling steps done, and in all."""
    left: float | None = None
    """Estimated seconds that the sampling steps still take; None where there is no pace yet."""
    paths: tuple[Path, ...] = ()
    """Image files; there once the job has ended."""
    notices: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def after(self, event: Event, left: float | None = None) -> "JobStatus":
        """Return the status after one more event of the job, and with the seconds ``left`` after its progress."""
        match event:
            case Waiting():
                return replace(self, state="waiting", message=event.message, done=0, total=0, left=None)
            case Progress():
                state: State = "drawing" if event.total else "loading"
                message = event.phase[:1].upper() + event.phase[1:]
                return replace(self, state=state, message=message, done=event.done, total=event.total, left=left)
            case Notice():
                return replace(self, notices=(*self.notices, event.message))
            case Result():
                return replace(self, paths=tuple(map(Path, event.value)))
            case Finished():
                return replace(self, state="done", message=" ".join(self.notices))
            case Cancelled():
                return replace(self, state="cancelled", message=" ".join(self.notices))
            case Failed():
                return replace(self, state="failed", message=event.message)
        return self
