"""The one door: what the command line, the page and Python callers may ask for."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora import errors
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.events import Event, OnEvent, RunFailed, RunStopped, ignore
from sdlora.files import safe_name
from sdlora.runs.folder import Run
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
