"""The device of a tool, held as a training holds it. It needs torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdlora.errors import BusyError
from sdlora.events import OnEvent, Progress
from sdlora.filesystem.locks import FOREVER, hold_lock
from sdlora.storage.device_lock import device_lock

LOCK_SECONDS = 0.3
"""Wait for a device's lock: a process that only checks whether the device is free has it for a moment."""


@contextmanager
def hold_device(device: torch.device, data_dir: Path, report: OnEvent) -> Iterator[None]:
    """Hold a device's lock for a ``with`` block, and report that it is waited for if another process has it."""
    lock_file, what = device_lock(data_dir, device), f"the device {device}"
    try:
        lock = hold_lock(lock_file, what, LOCK_SECONDS)
    except BusyError:
        report(Progress(phase=f"waiting for {device}: a training or a generation has it"))
        lock = hold_lock(lock_file, what, FOREVER)
    with lock:
        yield
