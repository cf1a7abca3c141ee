"""Starting a run's processes, following their events, and stopping them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil

from sdlora.errors import FileError
from sdlora.events import Event, OnEvent, RunFailed, RunStopped, ignore
from sdlora.python_process import spawn_python
from sdlora.storage.journal import follow_events
from sdlora.storage.run_folder import Run

QUEUED = "--queued"
"""Argument of a process that the queue starts."""


def follow(run: Run, process: subprocess.Popen[bytes] | None = None, start: int = 0) -> Iterator[Event]:
    """Yield the run's events from byte ``start`` of its journal, as they come, until its ``process`` has ended.

    Without ``process``, the run's lock decides whether one works on it.
    """
    is_over = (lambda: not run.is_locked()) if process is None else (lambda: process.poll() is not None)
    return follow_events(run.journal, is_over, start)


@dataclass
class Training:
    """A run whose process this program started."""

    run: Run
    process: subprocess.Popen[bytes]
    processes: int
    start: int
    """Byte of the journal at which this process's events begin."""
    printed: int = 0
    """Byte of the log at which this process's output begins."""
    last: Event | None = None
    """Newest event that ``wait`` has passed on."""
    stop_signal: int = 0
    """Signal with which ``interrupt`` asked for a stop; 0 as long as it has not."""

    def events(self) -> Iterator[Event]:
        """Yield the process's events, until it has ended."""
        return follow(self.run, self.process, self.start)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Ask for a stop, as Ctrl-C does; a second call ends the run at once, unsaved."""
        again, self.stop_signal = bool(self.stop_signal), number
        if os.name == "posix" and self.processes == 1:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
        elif again:
            self._kill()
        else:  # A launcher would give its processes 30 seconds after a signal, then kill them unsaved.
            self.run.stop()

    def wait(self, on_event: OnEvent = ignore) -> int:
        """Pass every event on until the process has ended; return its exit code, 128 + n after signal n."""
        for event in self.events():
            self.last = event
            on_event(event)
        code = self.process.wait()
        if isinstance(self.last, RunFailed):  # A launcher of several processes has exit codes of its own.
            return self.last.exit_code
        if isinstance(self.last, RunStopped) and code <= 128:
            return 128 + (self.stop_signal or signal.SIGTERM)
        return 128 - code if code < 0 else code

    def printed_error(self) -> str:
        """Return the last error that the process printed where it could write no event; "" if there is none."""
        try:
            lines = self.run.log.read_bytes()[self.printed :].decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")

    def _kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            for process in (*launcher.children(recursive=True), launcher):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def launch(run: Run, processes: int = 1, queued: bool = False) -> Training:
    """Start training ``run`` in a process (or several, over torchrun) of its own session; output goes to its log.

    A ``queued`` one ends at once if the run is taken out of the queue before it starts.

    Raises FileError for a run's folder with links out of it, or with anything that is no file.
    """
    run.require_inside()
    start = run.journal.stat().st_size if run.journal.exists() else 0
    worker = ["-m", "sdlora.jobs.training_worker", str(run.folder), *([QUEUED] if queued else [])]
    if processes > 1:
        worker = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *worker]
    environment = {"PYTHONUNBUFFERED": "1", "SDLORA_DATA_DIR": str(run.data_dir)}
    if processes > 1 and run.config.train.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    try:
        run.stop_file.unlink(missing_ok=True)
        with open(run.log, "ab") as log:
            printed = log.tell()
            process = spawn_python(worker, stdin=subprocess.DEVNULL, stdout=log, stderr=log, besides=environment)
    except OSError as error:
        raise FileError(f"{run.folder}: cannot be written ({error.strerror}); mend that, or copy the run") from error
    return Training(run, process, processes, start, printed)
