"""Generation with a studio and the adapters of a request: in the inference process, and between training steps."""

import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sdlora.errors import FileError, OutOfMemoryError, SdloraError
from sdlora.events import Failed, Notice, OnEvent, OnProgress
from sdlora.generation import xyz_grid
from sdlora.generation.images import save_images
from sdlora.generation.infotext import parse_parameters
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.warning_capture import capture_warnings

if TYPE_CHECKING:
    from sdlora.generation.studio import Studio

NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
"""PyTorch's words for too little memory, on a card or a CPU."""


class AdapterSession:
    """A studio, with the adapters that the last request has left in it."""

    def __init__(self, studio: "Studio"):
        self.studio = studio
        self._loaded: list[tuple[str, str, int]] = []
        """Name, path and time of change of each adapter, in their order."""

    def generate(
        self,
        request: GenerationRequest,
        report: OnEvent,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
        batch: int | None = None,
    ) -> list[Image.Image]:
        """Return the images of ``request``; those of a grid go into its folder instead, each as it is finished.

        Warnings are reported as notices. Raises what ``Studio`` raises.
        """
        with capture_warnings(lambda message: report(Notice(message=message))):
            self._load(request.adapters)
            if request.grid:
                xyz_grid.generate_cells(self.studio, Path(request.grid), on_progress, should_stop, batch)
                return []
            return self.studio.generate(
                request.prompt,
                request,
                count=request.count,
                on_progress=on_progress,
                should_stop=should_stop,
                batch=batch,
            )

    def clear(self) -> None:
        """Remove all adapters."""
        self._remove(0)

    def _load(self, adapters: Sequence[AdapterChoice]) -> None:
        """Load missing adapters and set all scales. The order is that of the request: sums round by it."""
        wanted = [(adapter.name, adapter.path, _modified(adapter.path)) for adapter in adapters]
        pairs = enumerate(zip(wanted, self._loaded, strict=False))
        different = next((number for number, (new, old) in pairs if new != old), None)
        keep = min(len(wanted), len(self._loaded)) if different is None else different
        self._remove(keep)
        for adapter, file in zip(adapters[keep:], wanted[keep:], strict=True):
            if not Path(adapter.path).exists():
                raise FileError(f"{adapter.path}: this adapter was deleted or moved while the image waited")
            self.studio.add_adapter(adapter.name, adapter.path, adapter.scale)
            self._loaded.append(file)
        for adapter in adapters:
            self.studio.set_scale(adapter.name, adapter.scale)

    def _remove(self, keep: int) -> None:
        while len(self._loaded) > keep:
            self.studio.remove_adapter(self._loaded.pop()[0])


def save_generated(images: Sequence[Image.Image], folder: Path) -> list[str]:
    """Save images under names that sort by their time, ``20260131-235959-SEED.png``; return the names."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = []
    for image in images:
        seed = parse_parameters(image.info["parameters"]).settings["Seed"]
        names += [path.name for path in save_images([image], folder / f"{stamp}-{seed}.png")]
    return names


def translate_error(error: Exception) -> Exception:
    """Return the OutOfMemoryError that ``error`` amounts to, else ``error`` itself."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return OutOfMemoryError("too little memory for these pictures; take a smaller size, or fewer at once")
    return error


def failure(error: Exception, log: str) -> Failed:
    """Return the event for a generation that failed; a bug's traceback goes to standard error, which ``log`` keeps."""
    if isinstance(error, SdloraError):
        return Failed(message=str(error), exit_code=error.exit_code)
    traceback.print_exception(error)
    message = f"{type(error).__name__}: {error} (a bug; the end of {log} says where)"
    return Failed(message=message, exit_code=1)


def _modified(path: str) -> int:
    """Return when a file was written last, in nanoseconds; 0 if it is gone, which its reader then reports better."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
