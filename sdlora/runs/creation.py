"""Pictures drawn in a process of its own (``sdlora.runs.painter``), so that a front end imports no torch.

``Creator`` starts that process when it is first needed and talks with it over its pipes, a line of JSON a message.
"""

import json
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sdlora.runs.process import spawn_python

if TYPE_CHECKING:
    from sdlora.families.settings import Model
    from sdlora.generation.settings import Engine

State = Literal["queued", "waiting", "loading", "drawing", "done", "cancelled", "failed"]
ENDED: frozenset[State] = frozenset(("done", "cancelled", "failed"))
KEPT = 200
"""How many requests are remembered."""
LOG_BYTES = 1 << 20
"""Of the drawing process's log; past them it is begun anew with the next process."""


def images_folder(data_dir: Path) -> Path:
    """Where the pictures go that are drawn, and the log of the process that draws them."""
    return data_dir / "creations"


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


def base_settings(model: "Model") -> dict[str, Any]:
    """``Request.base_settings`` of ``model``; the whole base draws, also what was learnt over a rounded one."""
    return model.model_dump(mode="json", exclude={"base", "quantize"}, exclude_defaults=True)


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


class InferenceClient:
    """The front end's side: hands requests to the process, and keeps what it tells."""

    def __init__(self, data_dir: Path, device: str = "auto"):
        self.data_dir = data_dir.resolve()
        self.device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._tickets: dict[int, JobStatus] = {}
        self._next = 0
        self._lock = threading.RLock()

    def submit(self, request: GenerationRequest) -> JobStatus:
        """Queue ``request``; the process is started if it is not there. Requests are drawn in their order."""
        with self._lock:
            self._next += 1
            ticket = self._tickets[self._next] = JobStatus(self._next, request)
            for old in list(self._tickets)[:-KEPT]:
                del self._tickets[old]
            self._send({"id": ticket.number, "draw": asdict(request)}, start=True)
            return self._tickets[ticket.number]

    def cancel(self, number: int) -> None:
        """Ask for an end of request ``number``; pictures that are finished by then are kept."""
        self._send({"cancel": number})

    def release_memory(self) -> None:
        """Let the process give its memory back, for a training to come."""
        self._send({"rest": True})

    def ticket(self, number: int) -> JobStatus | None:
        """Where request ``number`` stands, or None if it is forgotten."""
        with self._lock:
            return self._tickets.get(number)

    def newest(self) -> JobStatus | None:
        """The last request that was made, by whomever."""
        with self._lock:
            return self._tickets.get(self._next)

    def open(self) -> list[JobStatus]:
        """All requests that have not ended, in their order."""
        with self._lock:
            return [ticket for ticket in self._tickets.values() if not ticket.ended]

    def queued_before(self, number: int) -> int:
        """How many requests are to be drawn before request ``number``."""
        with self._lock:
            return sum(not ticket.ended for ticket in self._tickets.values() if ticket.number < number)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()  # Its sign to end.
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)

    def _send(self, message: dict[str, Any], start: bool = False) -> None:
        with self._lock:
            if self._process is None and start:
                self._start()
            if self._process is not None and self._process.stdin is not None:
                with suppress(BrokenPipeError):  # It has just ended: its reader tells everyone who waits.
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")
                    self._process.stdin.flush()

    def _start(self) -> None:
        command = ["-m", "sdlora.runs.painter", str(self.data_dir), self.device]
        log_file = images_folder(self.data_dir) / "process.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        full = log_file.exists() and log_file.stat().st_size > LOG_BYTES
        with open(log_file, "wb" if full else "ab") as log:
            self._process = spawn_python(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Take down what the process tells, until it has ended; whatever is open then has failed."""
        assert process.stdout is not None
        for line in process.stdout:
            self._update(**json.loads(line))
        code = process.wait()
        with self._lock:
            if self._process is process:
                self._process = None
            for ticket in [ticket for ticket in self._tickets.values() if not ticket.ended]:
                message = f"The drawing process ended (exit code {code}); try again, smaller if memory ran out."
                self._tickets[ticket.number] = replace(ticket, state="failed", message=message)

    def _update(self, id: int, **changes: Any) -> None:
        if "paths" in changes:
            changes["paths"] = tuple(map(Path, changes["paths"]))
        with self._lock:
            if id in self._tickets:
                self._tickets[id] = replace(self._tickets[id], **changes)
