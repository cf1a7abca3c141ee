"""What may be asked of an inference process, and where a request stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from sdlora.families.settings import Model
    from sdlora.generation.settings import Engine

State = Literal["queued", "waiting", "loading", "drawing", "done", "cancelled", "failed"]
ENDED: frozenset[State] = frozenset(("done", "cancelled", "failed"))


class AdapterChoice(NamedTuple):
    """An adapter in a request: the name by which prompts call it, its file, and its scale."""

    name: str
    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """What to draw, with what. Sizes are in pixels, the base's own if None; seed -1 draws one."""

    prompt: str
    negative: str = ""
    seed: int = -1
    steps: int = 25
    cfg: float = 7.0
    width: int | None = None
    height: int | None = None
    count: int = 1
    sampler: str = "DPM++ 2M"
    base: str = "pocket"
    adapters: tuple[AdapterChoice, ...] = ()
    clip_skip: int = 1
    grid: str = ""
    """The folder of a grid that is to be filled (``generation.compare``) in place of pictures of the prompt."""
    base_settings: Mapping[str, Any] = field(default_factory=dict)
    """What is said of the base beside its name: those settings of ``Model`` that are not as by default."""
    engine: Mapping[str, str] = field(default_factory=dict)
    """How it is computed: those settings of ``Engine`` that are not as by default."""

    @property
    def model(self) -> "Model":
        """The base, as a setting."""
        from sdlora.families.settings import Model

        return Model(base=self.base, **self.base_settings)

    @property
    def engine_settings(self) -> "Engine":
        """How it is computed, as settings."""
        from sdlora.generation.settings import Engine

        return Engine.model_validate(self.engine)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "GenerationRequest":
        """From what ``asdict`` and JSON made of one. Raises TypeError or KeyError for anything else."""
        return cls(**{**values, "adapters": tuple(AdapterChoice(*adapter) for adapter in values["adapters"])})


@dataclass(frozen=True)
class JobStatus:
    """Where a request stands. ``message`` says why it waits, failed, or what is worth knowing of its pictures."""

    number: int
    request: GenerationRequest
    state: State = "queued"
    message: str = ""
    done: int = 0
    total: int = 0
    """Sampling steps done, and in all."""
    paths: tuple[Path, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED
