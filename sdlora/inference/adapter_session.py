"""Drawing a request with a studio: what the drawing process and a training between its steps have in common."""

import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import OutOfMemoryError, SdloraError
from sdlora.events import OnProgress
from sdlora.generation import xyz_grid
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.warning_capture import capture_warnings

if TYPE_CHECKING:
    from PIL import Image

    from sdlora.generation.studio import Studio

NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
"""What PyTorch says, on a card or a CPU, when memory ran out."""


class AdapterSession:
    """A studio, with the adapters that the last request has left in it."""

    def __init__(self, studio: "Studio"):
        self.studio = studio
        self._loaded: list[tuple[str, str, int]] = []

    def draw(
        self,
        request: GenerationRequest,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
        batch: int | None = None,
    ) -> "tuple[list[Image.Image], str]":
        """The pictures of ``request``, and what its person should know of them. What it raises: see ``Studio``.

        Those of a grid go into its folder, each as it is finished.
        """
        notices: list[str] = []
        with capture_warnings(notices.append):
            self._mix(request.adapters)
            if request.grid:
                xyz_grid.generate_cells(self.studio, Path(request.grid), on_progress, should_stop, batch)
            images = [] if request.grid else self._pictures(request, on_progress, should_stop, batch)
        return images, " ".join(notices)

    def _pictures(
        self, request: GenerationRequest, on_progress: OnProgress, should_stop: Callable[[], bool], batch: int | None
    ) -> "list[Image.Image]":
        return self.studio.generate(
            request.prompt,
            request,
            count=request.count,
            on_progress=on_progress,
            should_stop=should_stop,
            batch=batch,
        )

    def clear(self) -> None:
        """Take all adapters out."""
        self._remove(0)

    def _mix(self, adapters: Sequence[AdapterChoice]) -> None:
        """Load what is not there yet and set the scales. The order stays that of the request: sums round by it."""
        wanted = [(adapter.name, adapter.path, _modified(adapter.path)) for adapter in adapters]
        same = next((n for n, pair in enumerate(zip(wanted, self._loaded, strict=False)) if pair[0] != pair[1]), None)
        keep = min(len(wanted), len(self._loaded)) if same is None else same
        self._remove(keep)
        for adapter, file in zip(adapters[keep:], wanted[keep:], strict=True):
            self.studio.add_adapter(adapter.name, adapter.path, adapter.scale)
            self._loaded.append(file)
        for adapter in adapters:
            self.studio.set_scale(adapter.name, adapter.scale)

    def _remove(self, keep: int) -> None:
        while len(self._loaded) > keep:
            self.studio.remove_adapter(self._loaded.pop()[0])


def save_generated(images: "Sequence[Image.Image]", folder: Path) -> list[str]:
    """Save pictures under names that sort by their time, ``20260131-235959-SEED.png``; return the names."""
    from sdlora.generation.images import save_images as save_image
    from sdlora.generation.infotext import parse_parameters

    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = []
    for image in images:
        seed = parse_parameters(image.info["parameters"]).settings["Seed"]
        names += [path.name for path in save_image([image], folder / f"{stamp}-{seed}.png")]
    return names


def translate_error(error: Exception) -> Exception:
    """``error``, or the OutOfMemoryError that it amounts to."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return OutOfMemoryError("too little memory for these pictures; take a smaller size, or fewer at once")
    return error


def error_sentence(error: Exception, log: str) -> str:
    """What to tell of a drawing that failed; a bug's traceback goes to standard error, which ``log`` keeps."""
    if isinstance(error, SdloraError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error} (a bug; the end of {log} says where)"


def _modified(path: str) -> int:
    """When a file was written last, in nanoseconds; 0 if it is gone, which its reader then says better."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
