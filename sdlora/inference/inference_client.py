"""Generation in a process of its own (``sdlora.inference.inference_worker``), so that a front end imports no torch.

``InferenceClient`` starts that process when it is first needed. Requests go in as lines of JSON, events come out.
"""

import json
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.errors import SdloraError
from sdlora.events import Event, Failed, JobStarted, Progress, read_events
from sdlora.inference.generation_request import GenerationRequest, JobStatus
from sdlora.python_process import spawn_python
from sdlora.storage.gallery import images_folder
from sdlora.time_left import TimeLeft

MOST_JOBS = 200
"""Number of jobs whose status is remembered."""
LOG_BYTES = 1 << 20
"""Size of the inference process's log at which the next process begins a new one."""


class InferenceClient:
    """The front end's side: queues requests, and follows the status of their jobs."""

    def __init__(self, data_dir: Path, device: str = "auto"):
        self.data_dir = data_dir.resolve()
        self.device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: dict[int, JobStatus] = {}
        self._last = 0
        self._lock = threading.RLock()

    def submit(self, request: GenerationRequest) -> JobStatus:
        """Queue ``request``; start the process if it does not run. Requests are served in their order."""
        with self._lock:
            self._last += 1
            job = self._jobs[self._last] = JobStatus(self._last, request)
            for old in list(self._jobs)[:-MOST_JOBS]:
                del self._jobs[old]
            self._send({"number": job.number, "generate": request.to_json()}, start=True)
            return self._jobs[job.number]

    def cancel(self, number: int) -> None:
        """Ask for an end of job ``number``; images that are finished by then are kept."""
        self._send({"cancel": number})

    def release_memory(self) -> None:
        """Let the process give its memory back, for a training to come."""
        self._send({"release_memory": True})

    def status(self, number: int) -> JobStatus | None:
        """Return the status of job ``number``, or None if it is forgotten."""
        with self._lock:
            return self._jobs.get(number)

    def newest(self) -> JobStatus | None:
        """Return the status of the last job, whoever submitted it."""
        with self._lock:
            return self._jobs.get(self._last)

    def open(self) -> list[JobStatus]:
        """Return all jobs that have not ended, in their order."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.ended]

    def queued_before(self, number: int) -> int:
        """Return how many jobs are to be served before job ``number``."""
        return sum(job.number < number for job in self.open())

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
                with suppress(BrokenPipeError):  # It has just ended: its reader marks all open jobs as failed.
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")
                    self._process.stdin.flush()

    def _start(self) -> None:
        command = ["-m", "sdlora.inference.inference_worker", str(self.data_dir), self.device]
        log_file = images_folder(self.data_dir) / "process.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        full = log_file.exists() and log_file.stat().st_size > LOG_BYTES
        with open(log_file, "wb" if full else "ab") as log:
            self._process = spawn_python(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Follow the process's events until it has ended; jobs that are open then have failed."""
        assert process.stdout is not None
        number, time_left = 0, TimeLeft()
        for event in read_events(process.stdout):
            match event:
                case JobStarted():
                    number, time_left = event.number, TimeLeft()
                case Progress():
                    self._update(number, event, time_left.update(event.phase, event.done, event.total, event.time))
                case _:
                    self._update(number, event)
        code = process.wait()
        message = f"The drawing process ended (exit code {code}); try again, smaller if memory ran out."
        with self._lock:
            if self._process is process:
                self._process = None
            for job in self.open():
                self._update(job.number, Failed(message=message, exit_code=SdloraError.exit_code))

    def _update(self, number: int, event: Event, left: float | None = None) -> None:
        with self._lock:
            if number in self._jobs:
                self._jobs[number] = self._jobs[number].after(event, left)
