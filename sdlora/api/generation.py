"""Images: requests to the inference process, and the device's lock for generating in this one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdlora.errors import BusyError
from sdlora.filesystem.locks import FOREVER, hold_lock
from sdlora.filesystem.paths import data_root
from sdlora.generation.images import check_output as check_output
from sdlora.generation.images import embedded_texts as embedded_texts
from sdlora.generation.images import save_images as save_images
from sdlora.generation.settings import Engine
from sdlora.inference.generation_request import AdapterChoice as AdapterChoice
from sdlora.inference.generation_request import GenerationRequest as GenerationRequest
from sdlora.inference.generation_request import JobStatus as JobStatus
from sdlora.inference.inference_client import InferenceClient as InferenceClient
from sdlora.storage.device_lock import device_lock
from sdlora.storage.gallery import images_folder as images_folder
from sdlora.storage.gallery import newest_images as newest_images
from sdlora.storage.gallery import restore_image as restore_image
from sdlora.storage.gallery import trash_image as trash_image

LOCK_SECONDS = 0.3
"""Wait for a device's lock: a process that only checks whether the device is free has it for a moment."""


@contextmanager
def lock_device(device: str, data_dir: Path | None, on_wait: Callable[[str], object]) -> Iterator[None]:
    """Lock ``device``, as a training does, for a ``with`` block; ``on_wait`` gets a message if another process has it.

    Raises ConfigError or DeviceError for a missing device, FileError if its lock cannot be written.
    """
    from sdlora.generation.device import choose_device

    torch_device = choose_device(device)
    lock_file = device_lock(data_root(data_dir), torch_device)
    try:
        lock = hold_lock(lock_file, f"the device {torch_device}", LOCK_SECONDS)
    except BusyError:
        on_wait(f"waiting for {torch_device}: a training or another generation has it")
        lock = hold_lock(lock_file, f"the device {torch_device}", FOREVER)
    with lock:
        yield


def require_engine(engine: Engine, device: str) -> Engine:
    """Return ``engine``. Raises ConfigError if ``device`` or the installed packages do not support it, DeviceError."""
    from sdlora.generation.device import choose_device
    from sdlora.generation.runtime import require_supported

    require_supported(engine, choose_device(device))
    return engine
