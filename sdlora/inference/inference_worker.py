"""The process that draws: ``python -m sdlora.inference.inference_worker DIR DEVICE``, a line of JSON a message on its
pipes.

It keeps the base and its adapters between requests, takes the device's lock only while it draws, and ends when its
parent does. While a training has the device, it asks that training to draw between its steps, or waits for its end.
``sdlora.inference.inference_client`` is the parent's side.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sdlora.errors import BusyError
from sdlora.filesystem.paths import path_inside
from sdlora.inference.adapter_session import AdapterSession, error_sentence, save_generated
from sdlora.inference.device_requests import DeviceRequests, RequestStatus, SubmittedRequest
from sdlora.inference.generation_request import ENDED, GenerationRequest
from sdlora.storage.gallery import images_folder
from sdlora.storage.locks import device_lock, hold_lock

if TYPE_CHECKING:
    import torch
    from filelock import FileLock

WAIT_SECONDS = 0.3
"""Between two looks at a device that a training holds. Longer than a viewer's look at its lock."""


class InferenceWorker:
    """The process's side: keeps one studio, and serves one request after the other."""

    def __init__(self, data_dir: Path, device: str, tell: Callable[..., None]):
        self.data_dir = data_dir
        self.device = device
        self.tell = tell
        self.cancelled: set[int] = set()
        self._easel: AdapterSession | None = None

    def serve(self, number: int, request: GenerationRequest) -> None:
        """Draw ``request`` and tell how it goes; nothing that goes wrong with it ends the process."""
        try:
            answer = self._answer(number, request)
        except Exception as error:
            answer = RequestStatus("failed", error_sentence(error, "creations/process.log"))
        self._tell(number, answer)

    def release_memory(self) -> None:
        """Give the memory of the base and its adapters back."""
        import gc

        import torch

        self._easel = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tell(self, number: int, answer: RequestStatus) -> None:
        values = {name: value for name, value in asdict(answer).items() if value is not None}
        folder = images_folder(self.data_dir)
        paths = [str(path_inside(folder, name)) for name in values.pop("pictures")]
        self.tell(id=number, **values, **({"paths": paths} if answer.state in ENDED else {}))

    def _answer(self, number: int, request: GenerationRequest) -> RequestStatus:
        """How ``request`` ended, drawn here or by a training."""
        from sdlora.generation.device import choose_device

        device = choose_device(self.device)
        lock = self._hold_device(number, request, device)
        if isinstance(lock, RequestStatus):
            return lock
        with lock:
            easel = self._open(number, request)
            images, notices = easel.draw(
                request,
                lambda done, total: self._tell(number, RequestStatus("drawing", done=done, total=total)),
                lambda: number in self.cancelled,
            )
        names = tuple(save_generated(images, images_folder(self.data_dir)))
        return RequestStatus("cancelled" if number in self.cancelled else "done", notices, pictures=names)

    def _hold_device(
        self, number: int, request: GenerationRequest, device: "torch.device"
    ) -> "FileLock | RequestStatus":
        """The device's lock; while another has it, that one is asked to draw: then how it ended."""
        if number in self.cancelled:
            return RequestStatus("cancelled")
        lock_file = device_lock(self.data_dir, device)
        try:
            return hold_lock(lock_file, f"the device {device}", WAIT_SECONDS)
        except BusyError:
            self.release_memory()  # A training has it, perhaps for hours: its steps need the memory more.
            message = f"A training is using {device}; this is drawn between its steps, or after it."
            self._tell(number, RequestStatus("waiting", message))
        inquiry = DeviceRequests(lock_file).submit(request)
        try:
            return self._follow(number, inquiry, lock_file)
        finally:
            inquiry.close()

    def _follow(self, number: int, inquiry: SubmittedRequest, lock_file: Path) -> "FileLock | RequestStatus":
        """Pass on what the device's holder says, until it has drawn, or the device is free."""
        while True:
            if ended := self._relay(number, inquiry):
                return ended
            if number in self.cancelled and inquiry.withdraw():
                return RequestStatus("cancelled")
            try:
                lock = hold_lock(lock_file, "the device", WAIT_SECONDS)
            except BusyError:
                continue
            ended = self._relay(number, inquiry)  # Its last word, said as it let the device go.
            if ended is None and number in self.cancelled:
                ended = RequestStatus("cancelled")
            if ended is not None:
                lock.release()
            return ended or lock

    def _relay(self, number: int, inquiry: SubmittedRequest) -> RequestStatus | None:
        """Pass on what the device's holder has said since the last call; how it ended, if it did."""
        for answer in inquiry.answers():
            if answer.state in ENDED:
                return answer
            self._tell(number, answer)
        return None

    def _open(self, number: int, request: GenerationRequest) -> AdapterSession:
        """The easel over the request's base, loaded anew only where that, or what is said of it, is another."""
        from sdlora.generation.studio import Studio

        if self._easel is None or self._easel.studio.model != request.model:
            self.release_memory()
            self._tell(number, RequestStatus("loading"))
            self._easel = AdapterSession(Studio(request.model, device=self.device, engine=request.engine_settings))
        self._easel.studio.runtime.use(request.engine_settings)
        return self._easel


def _read(lines: IO[bytes], painter: InferenceWorker, requests: "queue.Queue[dict[str, Any]]") -> None:
    """Pass the parent's requests on; a cancellation takes effect at once. At the end of lines, the parent is gone."""
    for line in lines:
        message = json.loads(line)
        if "cancel" in message:
            painter.cancelled.add(message["cancel"])
        else:
            requests.put(message)
    os._exit(0)  # Files are written whole or not at all, and locks die with their holder.


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # What a library prints goes to the log, not between the answers.
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    painter = InferenceWorker(Path(sys.argv[1]), sys.argv[2], lambda **answer: print(json.dumps(answer), file=answers))
    threading.Thread(target=_read, args=(sys.stdin.buffer, painter, requests), daemon=True).start()
    while True:
        message = requests.get()
        if "draw" in message:
            painter.serve(message["id"], GenerationRequest.model_validate(message["draw"]))
        elif "rest" in message:
            painter.release_memory()


if __name__ == "__main__":
    sys.exit(main())
