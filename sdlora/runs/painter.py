"""The process that draws: ``python -m sdlora.runs.painter DIR DEVICE``, a line of JSON a message on its pipes.

It keeps the base and its adapters between requests, takes the device's lock only while it draws (so it waits while a
training has it, and says so), and ends when its parent does. ``sdlora.runs.creation`` is the parent's side.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sdlora.errors import BusyError, SdloraError
from sdlora.runs.creation import Mixed, Request, creations_folder
from sdlora.runs.folder import device_lock, hold

if TYPE_CHECKING:
    from filelock import FileLock
    from PIL import Image

    from sdlora.generation.studio import Studio

PACKAGE = Path(__file__).resolve().parent.parent
WAIT_SECONDS = 0.3
"""Between two looks at a device that a training holds."""


class Painter:
    """The process's side: keeps one studio, and serves one request after the other."""

    def __init__(self, data_dir: Path, device: str, tell: Callable[..., None]):
        self.data_dir = data_dir
        self.device = device
        self.tell = tell
        self.cancelled: set[int] = set()
        self._studio: Studio | None = None
        self._base = ""
        self._loaded: list[tuple[str, str, int]] = []

    def serve(self, number: int, request: Request) -> None:
        """Draw ``request`` and tell how it goes; nothing that goes wrong with it ends the process."""
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                paths = self._draw(number, request)
            ours = (warning for warning in said if PACKAGE in Path(warning.filename).parents)
            notices = dict.fromkeys(str(warning.message) for warning in ours)
            state = "cancelled" if number in self.cancelled else "done"
            self.tell(id=number, state=state, message=" ".join(notices), paths=[str(path) for path in paths])
        except SdloraError as error:
            self.tell(id=number, state="failed", message=str(error))
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error} (a bug; the end of creations/process.log says where)"
            self.tell(id=number, state="failed", message=message)

    def rest(self) -> None:
        """Give the memory of the base and its adapters back."""
        import gc

        import torch

        self._studio, self._base, self._loaded = None, "", []
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _draw(self, number: int, request: Request) -> list[Path]:
        lock = self._hold_device(number)
        if lock is None:
            return []
        with lock:
            studio = self._open(number, request.base)
            self._mix(studio, request.adapters)
            images = studio.generate(
                request.prompt,
                negative=request.negative,
                steps=request.steps,
                cfg=request.cfg,
                seed=request.seed,
                width=request.width,
                height=request.height,
                count=request.count,
                sampler=request.sampler,
                on_progress=lambda done, total: self.tell(
                    id=number, state="drawing", message="", done=done, total=total
                ),
                should_stop=lambda: number in self.cancelled,
            )
        return _save(images, creations_folder(self.data_dir))

    def _hold_device(self, number: int) -> "FileLock | None":
        """The device's lock, waited for while another has it; None if the request is cancelled meanwhile."""
        from sdlora.generation.device import choose_device

        device = choose_device(self.device)
        lock_file = device_lock(self.data_dir, device)
        waits = False
        while number not in self.cancelled:
            try:
                return hold(lock_file, f"the device {device}", WAIT_SECONDS if waits else 0)
            except BusyError:
                if not waits:
                    self.tell(id=number, state="waiting", message=f"A training is using {device}; this is drawn next.")
                waits = True
        return None

    def _open(self, number: int, base: str) -> "Studio":
        """The studio over ``base``, loaded anew only where it is another than before."""
        from sdlora.generation.studio import Studio

        if self._studio is None or self._base != base:
            self.rest()
            self.tell(id=number, state="loading", message="")
            self._studio, self._base = Studio(base, device=self.device), base
        return self._studio

    def _mix(self, studio: "Studio", adapters: Sequence[Mixed]) -> None:
        """Load what is not there yet and set the scales. The order stays that of the request: sums round by it."""
        wanted = [(adapter.name, adapter.path, _modified(adapter.path)) for adapter in adapters]
        same = next((n for n, pair in enumerate(zip(wanted, self._loaded, strict=False)) if pair[0] != pair[1]), None)
        keep = min(len(wanted), len(self._loaded)) if same is None else same
        for name, _, _ in self._loaded[keep:]:
            studio.remove_adapter(name)
        del self._loaded[keep:]
        for adapter, file in zip(adapters[keep:], wanted[keep:], strict=True):
            studio.add_adapter(adapter.name, adapter.path, adapter.scale)
            self._loaded.append(file)
        for adapter in adapters:
            studio.set_scale(adapter.name, adapter.scale)


def _modified(path: str) -> int:
    """When a file was written last, in nanoseconds; 0 if it is gone, which its reader then says better."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def _save(images: "Sequence[Image.Image]", folder: Path) -> list[Path]:
    """Save pictures under names that sort by their time: ``20260131-235959-SEED.png``."""
    from sdlora.generation.images import parse_parameters, save

    stamp = time.strftime("%Y%m%d-%H%M%S")
    paths = []
    for image in images:
        seed = parse_parameters(image.info["parameters"]).settings["Seed"]
        paths += save([image], folder / f"{stamp}-{seed}.png")
    return paths


def _request(values: dict[str, Any]) -> Request:
    return Request(**{**values, "adapters": tuple(Mixed(*adapter) for adapter in values["adapters"])})


def _read(lines: IO[bytes], painter: Painter, requests: "queue.Queue[dict[str, Any]]") -> None:
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
    painter = Painter(Path(sys.argv[1]), sys.argv[2], lambda **answer: print(json.dumps(answer), file=answers))
    threading.Thread(target=_read, args=(sys.stdin.buffer, painter, requests), daemon=True).start()
    while True:
        message = requests.get()
        if "draw" in message:
            painter.serve(message["id"], _request(message["draw"]))
        elif "rest" in message:
            painter.rest()


if __name__ == "__main__":
    sys.exit(main())
