"""Pictures drawn in a process of its own (``sdlora.inference.inference_worker``), so that a front end imports no torch.

``InferenceClient`` starts that process when it is first needed and talks with it over its pipes, a line of JSON a
message.
"""

import json
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdlora.inference.generation_request import GenerationRequest, JobStatus
from sdlora.python_process import spawn_python
from sdlora.storage.gallery import images_folder

KEPT = 200
"""How many requests are remembered."""
LOG_BYTES = 1 << 20
"""Of the drawing process's log; past them it is begun anew with the next process."""


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
            self._send({"id": ticket.number, "draw": request.model_dump(mode="json")}, start=True)
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
        command = ["-m", "sdlora.inference.inference_worker", str(self.data_dir), self.device]
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
