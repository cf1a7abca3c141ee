"""The one door: what the command line, the page and Python callers may ask for."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sdlora import errors
from sdlora.errors import BusyError, ConfigError, FileError, SdloraError
from sdlora.events import Event, OnEvent, RunFailed, RunStopped, ignore
from sdlora.files import safe_name
from sdlora.runs.creation import Creator as Creator
from sdlora.runs.creation import Mixed as Mixed
from sdlora.runs.creation import Request as Request
from sdlora.runs.creation import Ticket as Ticket
from sdlora.runs.folder import Run, RunState, hold
from sdlora.runs.launch import follow, launch

if TYPE_CHECKING:
    from sdlora.config import TrainConfig


def default_data_dir() -> Path:
    """Where runs and caches go unless told otherwise: ``$SDLORA_DATA_DIR``, or ``sdlora`` in the home folder."""
    return Path(os.environ.get("SDLORA_DATA_DIR") or Path.home() / "sdlora")


def runs_in(data_dir: Path | None = None) -> list[Run]:
    """All runs, the newest first."""
    folder = (data_dir or default_data_dir()) / "runs"
    found = [Run(path.parent) for path in folder.glob("*/config.toml")]
    return sorted(found, key=lambda run: run.config_file.stat().st_mtime, reverse=True)


def find_run(name: str, data_dir: Path | None = None) -> Run:
    """The run called ``name``, or at that path. Raises ConfigError naming those that there are."""
    return Run.find((data_dir or default_data_dir()) / "runs", name)


def prepare(config: "TrainConfig", name: str | None = None, data_dir: Path | None = None) -> Run:
    """Make a new run's folder without starting it (for ``torchrun``). An existing run is never touched."""
    name = name or safe_name(config.data.trigger or config.data.folder.name, fallback="run")
    return Run.create((data_dir or default_data_dir()) / "runs", name, config)


@dataclass
class Training:
    """A run whose process this program started."""

    run: Run
    process: subprocess.Popen[bytes]
    start: int = 0
    """Byte of the journal at which this process's events begin."""

    def events(self) -> Iterator[Event]:
        """What the process tells, until it has ended."""
        return follow(self.run, self.process, self.start)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Ask for a stop, as Ctrl-C does; a second call ends the process at once, unsaved."""
        with suppress(ProcessLookupError):
            if os.name == "posix":  # The whole group: a launcher does not pass signals on to its children.
                os.killpg(self.process.pid, number)
            else:
                self.run.stop()

    def wait(self, on_event: OnEvent = ignore) -> int:
        """Pass every event on until the process has ended; return its exit code (128 + n after signal n)."""
        for event in self.events():
            on_event(event)
        code = self.process.wait()
        return 128 - code if code < 0 else code


def start(config: "TrainConfig", name: str | None = None, data_dir: Path | None = None, processes: int = 1) -> Training:
    """Make a run and start its process."""
    run = prepare(config, name, data_dir)
    return Training(run, launch(run, processes))


def resume(run: Run, processes: int = 1) -> Training:
    """Go on with a run from its newest checkpoint. Raises BusyError if it runs already."""
    if run.held():
        raise BusyError(f"the run {run.name} is running already")
    begin = run.journal.stat().st_size if run.journal.exists() else 0
    return Training(run, launch(run, processes), begin)


def train(
    config: "TrainConfig",
    name: str | None = None,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
    processes: int = 1,
) -> Run:
    """Train to the end in a process of its own; ``run.adapter`` is the finished file.

    Raises the SdloraError that the run failed with. A run stopped on request is returned as it is.
    """
    training = start(config, name, data_dir, processes)
    last: list[Event] = []

    def listen(event: Event) -> None:
        last[:] = [event]
        on_event(event)

    code = training.wait(listen)
    if code == 0 or (last and isinstance(last[0], RunStopped)):
        return training.run
    raise failure(training.run, code, last[0] if last else None)


def failure(run: Run, code: int, last: Event | None) -> SdloraError:
    """The error that a run's end stands for, in the class that its exit code names."""
    if isinstance(last, RunFailed):
        message, code = last.message, last.exit_code
    else:
        lines = run.log.read_text(errors="replace").splitlines() if run.log.exists() else []
        said = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
        message = said or f"the run {run.name} was cut off (exit code {code}); go on with: sdlora resume {run.name}"
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, SdloraError)]
    return next((cls for cls in classes if cls.exit_code == code), SdloraError)(message)


def adapter_of(source: str, data_dir: Path | None = None) -> Path:
    """The adapter file that ``source`` names: a file, a run's folder, or a run's name.

    Raises ConfigError if there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    run = find_run(source, data_dir)
    saved = sorted(run.checkpoints.glob("*.safetensors"))
    for candidate in (run.adapter, *reversed(saved)):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{source}: this run has saved no adapter yet")


def adapter_name(path: Path) -> str:
    """What to call the adapter in ``path``: a run's own file is called as the run is."""
    return path.parent.name if path.name == "adapter.safetensors" else path.stem


def export(source: str, output: Path, format: str = "kohya", dtype: str = "fp32", data_dir: Path | None = None) -> Path:
    """Write the adapter of a run or file to ``output`` in ``format``'s keys. Raises ConfigError if it exists."""
    from sdlora.formats import read_adapter, write_adapter

    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output}: adapters are .safetensors files; name it {output.stem}.safetensors")
    write_adapter(read_adapter(adapter_of(source, data_dir)), output, format=format, dtype=dtype)
    return output


class AdapterFile(NamedTuple):
    """An adapter to draw with: its name in prompts, its file, and the base it was trained on ("" if unknown)."""

    name: str
    path: Path
    base: str


def adapters_in(data_dir: Path | None = None) -> list[AdapterFile]:
    """The adapters of all runs that have saved one, the newest run first."""
    found = []
    for run in runs_in(data_dir):
        with suppress(SdloraError):
            found.append(AdapterFile(run.name, adapter_of(str(run.folder), data_dir), run.config.model.base))
    return found


def bases() -> list[str]:
    """The bundled base models that are there."""
    from sdlora.families.loading import BUNDLED

    return [name for name, folder in BUNDLED.items() if (folder / "model_index.json").is_file()]


def preset_for(base: str, kind: Literal["style", "subject"]) -> str:
    """The name of the preset that suits ``base``: its own, or its family's."""
    from sdlora.config import presets
    from sdlora.families.loading import detect_folder

    folder = Path(base).expanduser()
    family = detect_folder(folder) if (folder / "model_index.json").is_file() else ""
    own = base if base in {path.stem.rpartition("-")[0] for path in presets()} else ""
    return f"{own or ('sdxl' if 'xl' in (family or base).lower() else 'sd15')}-{kind}"


def exported(source: str, format: str, dtype: str = "fp32", data_dir: Path | None = None) -> Path:
    """``export`` for a front end: in a process of its own, since reading tensors needs torch, to a temporary file."""
    name = safe_name(adapter_name(adapter_of(source, data_dir)), fallback="adapter")
    output = Path(tempfile.mkdtemp(prefix="sdlora-export-")) / f"{name}-{format}.safetensors"
    command = [sys.executable, "-m", "sdlora.cli", "export", source, "--format", format, "--dtype", dtype]
    where = ["--data-dir", str(data_dir)] if data_dir else []
    ended = subprocess.run([*command, "--output", str(output), *where], capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        raise FileError(lines[-1].removeprefix("error: ") if lines else f"{source}: could not be exported")
    return output


class TrainingQueue:
    """Starts runs one after the other, whenever no process holds a device. A run waits by a file in its folder.

    So the queue outlives the program that keeps it; two programs may keep it at once, as locks decide who trains.
    """

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self._training: Training | None = None
        self._stopping: set[Path] = set()
        self._over = threading.Event()
        self._lock = threading.RLock()

    def watch(self, seconds: float = 1.0) -> None:
        """Look after the queue in the background, until ``close``."""

        def loop() -> None:
            while not self._over.wait(seconds):
                self.tick()

        threading.Thread(target=loop, daemon=True).start()

    def close(self) -> None:
        """Stop looking after the queue. A training that runs goes on."""
        self._over.set()

    def add(self, run: Run) -> None:
        """Let ``run`` start, or go on, as soon as a device is free. Raises BusyError if it runs already."""
        if run.held():
            raise BusyError(f"the run {run.name} is running already")
        with self._lock:
            self._stopping.discard(run.folder)
            _marker(run).write_text(str(time.time_ns()))

    def stop(self, run: Run) -> None:
        """Take ``run`` out of the queue, or ask it to finish its step, save, and end."""
        with self._lock:
            _marker(run).unlink(missing_ok=True)
            if run.held() or self._starts(run):
                self._stopping.add(run.folder)
                run.stop()

    def state(self, run: Run) -> RunState | Literal["queued", "stopping"]:
        """The run's own state, or what the queue has in mind for it."""
        if run.folder in self._stopping:
            return "stopping"
        if run.held():
            return "stopping" if run.stop_file.exists() else "running"
        return "queued" if _marker(run).exists() else run.state

    def current(self) -> Run | None:
        """The run that matters now: one that runs, else the first that waits, else the newest."""
        runs = runs_in(self.data_dir)
        running = next((run for run in runs if run.held()), None)
        return running or next(iter(self.waiting()), None) or next(iter(runs), None)

    def waiting(self) -> list[Run]:
        """The runs that wait for a device, in their order."""
        return sorted((run for run in runs_in(self.data_dir) if _marker(run).exists()), key=_since)

    def tick(self) -> None:
        """Follow the run that was started; start the first that waits where no device is held."""
        with self._lock:
            if self._training is not None and not self._follow(self._training):
                return
            self._training = None
            self._stopping = {folder for folder in self._stopping if Run(folder).held()}
            waiting = self.waiting()
            if waiting and not self._busy():
                self._training = Training(waiting[0], launch(waiting[0]))

    def _follow(self, training: Training) -> bool:
        """Whether its process has ended. One that found the device taken keeps its place."""
        run, code = training.run, training.process.poll()
        if run.held():
            _marker(run).unlink(missing_ok=True)
        if run.folder in self._stopping and code is None:
            run.stop()  # Again: a request from before the process was there is cleared when it starts.
        if code is None:
            return False
        if code != BusyError.exit_code:
            _marker(run).unlink(missing_ok=True)
        return True

    def _starts(self, run: Run) -> bool:
        """Whether this queue has started a process for ``run`` that has not ended."""
        mine = self._training is not None and self._training.run.folder == run.folder
        return mine and self._training is not None and self._training.process.poll() is None

    def _busy(self) -> bool:
        for lock_file in (self.data_dir / "locks").glob("*.lock"):
            try:
                hold(lock_file, "the device").release()
            except BusyError:
                return True
        return False


def _marker(run: Run) -> Path:
    """The file that says that ``run`` waits for a device."""
    return run.folder / "queued"


def _since(run: Run) -> int:
    """When ``run`` was queued, in nanoseconds (a file's own time is too coarse); 0 if it has just started."""
    try:
        return int(_marker(run).read_text())
    except (FileNotFoundError, ValueError):
        return 0
