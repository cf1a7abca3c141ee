"""The inference process: ``python -m sdlora.inference.inference_worker DATA_DIR DEVICE``.

It reads requests as lines of JSON and reports events. It keeps the base and its adapters between requests, locks the
device only while it generates, and ends when its parent does. While a training has the device, it passes requests on to
that training, or waits for its end. ``sdlora.inference.inference_client`` is the parent's side.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock

from sdlora.errors import BusyError
from sdlora.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    JobStarted,
    OnEvent,
    Progress,
    Result,
    Waiting,
    report_progress,
)
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.paths import path_inside
from sdlora.inference.adapter_session import AdapterSession, failure, save_generated
from sdlora.inference.device_requests import DeviceRequests, SubmittedRequest
from sdlora.inference.generation_request import GenerationRequest
from sdlora.storage.device_lock import device_lock
from sdlora.storage.gallery import images_folder

if TYPE_CHECKING:
    import torch

WAIT_SECONDS = 0.3
"""Between two attempts at a device that a training has. Longer than a viewer has its lock."""


class InferenceWorker:
    """One studio that serves one request after the other."""

    def __init__(self, data_dir: Path, device: str, report: OnEvent):
        self.data_dir = data_dir
        self.device = device
        self.report = report
        self.cancelled: set[int] = set()
        self._session: AdapterSession | None = None

    def serve(self, number: int, request: GenerationRequest) -> None:
        """Generate ``request``; nothing that goes wrong with it ends the process."""
        self.report(JobStarted(number=number))
        try:
            self._serve(number, request)
        except Exception as error:
            self.report(failure(error, "creations/process.log"))

    def release_memory(self) -> None:
        """Give the memory of the base and its adapters back."""
        import gc

        import torch

        self._session = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _serve(self, number: int, request: GenerationRequest) -> None:
        from sdlora.generation.device import choose_device

        lock = self._hold_device(number, request, choose_device(self.device))
        if lock is None:
            return
        with lock:
            progress = report_progress(self.report, "drawing")
            images = self._open(request).generate(request, self.report, progress, lambda: number in self.cancelled)
        self._report_images(save_generated(images, images_folder(self.data_dir)))
        self.report(Cancelled() if number in self.cancelled else Finished())

    def _hold_device(self, number: int, request: GenerationRequest, device: "torch.device") -> FileLock | None:
        """Lock the device. While a training has it, that one is asked: None if it served the request, or on cancel."""
        if number in self.cancelled:
            self.report(Cancelled())
            return None
        lock_file = device_lock(self.data_dir, device)
        try:
            return hold_lock(lock_file, f"the device {device}", WAIT_SECONDS)
        except BusyError:
            self.release_memory()  # A training has it, perhaps for hours: its steps need the memory more.
            message = f"A training is using {device}; this is drawn between its steps, or after it."
            self.report(Waiting(message=message))
        submitted = DeviceRequests(lock_file).submit(request)
        try:
            return self._follow(number, submitted, lock_file)
        finally:
            submitted.close()

    def _follow(self, number: int, submitted: SubmittedRequest, lock_file: Path) -> FileLock | None:
        """Pass on the events of the device's owner, until it has ended the request (None), or the device is free."""
        while not self._relay(submitted):
            if number in self.cancelled and submitted.withdraw():
                self.report(Cancelled())
                return None
            try:
                lock = hold_lock(lock_file, "the device", WAIT_SECONDS)
            except BusyError:
                continue
            ended = self._relay(submitted)  # Its last event, reported as it let the device go.
            if not ended and number not in self.cancelled:
                return lock
            lock.release()
            if not ended:
                self.report(Cancelled())
            return None
        return None

    def _relay(self, submitted: SubmittedRequest) -> bool:
        """Pass on what the device's owner has reported since the last call; return whether the request has ended."""
        for event in submitted.events():
            if isinstance(event, Result):
                self._report_images(event.value)
            else:
                self.report(event)
            if isinstance(event, Finished | Cancelled | Failed):
                return True
        return False

    def _report_images(self, names: list[str]) -> None:
        folder = images_folder(self.data_dir)
        self.report(Result(value=[str(path_inside(folder, name)) for name in names]))

    def _open(self, request: GenerationRequest) -> AdapterSession:
        """Return the session on the request's base, which is loaded only where the base or its settings are others."""
        from sdlora.generation.studio import Studio

        if self._session is None or self._session.studio.model != request.model:
            self.release_memory()
            self.report(Progress(phase="loading the base model"))
            self._session = AdapterSession(Studio(request.model, device=self.device, engine=request.engine_settings))
        self._session.studio.runtime.use(request.engine_settings)
        return self._session


def _read(lines: IO[bytes], worker: InferenceWorker, messages: "queue.Queue[dict[str, Any]]") -> None:
    """Queue the parent's messages; a cancellation takes effect at once. When the lines end, the parent is gone."""
    for line in lines:
        message = json.loads(line)
        if "cancel" in message:
            worker.cancelled.add(message["cancel"])
        else:
            messages.put(message)
    os._exit(0)  # Files are written whole or not at all, and locks die with their process.


def main() -> int:
    output = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # What a library prints goes to the log, not between the events.

    def report(event: Event) -> None:
        print(event.to_json(), file=output)

    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    worker = InferenceWorker(Path(sys.argv[1]), sys.argv[2], report)
    threading.Thread(target=_read, args=(sys.stdin.buffer, worker, messages), daemon=True).start()
    while True:
        message = messages.get()
        if "generate" in message:
            worker.serve(message["number"], GenerationRequest.model_validate(message["generate"]))
        elif "release_memory" in message:
            worker.release_memory()


if __name__ == "__main__":
    sys.exit(main())
