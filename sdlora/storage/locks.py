"""Locks of runs and devices, which end with the process that holds them."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sdlora.errors import BusyError, FileError
from sdlora.filesystem.paths import safe_name

if TYPE_CHECKING:
    import torch


FOREVER = -1
"""Timeout of ``hold_lock`` that never expires."""


def device_lock(data_dir: Path, device: "torch.device") -> Path:
    """Return the lock file of a device, the same under all of its names.

    ``cuda`` is ``cuda:0``; a card is known by its own number, as ``CUDA_VISIBLE_DEVICES`` renames it; anything else by
    its machine, as several may share ``data_dir``.
    """
    import torch

    is_card = device.type == "cuda"
    name = safe_name(str(torch.cuda.get_device_properties(device.index or 0).uuid)) if is_card else _machine()
    return data_dir / "locks" / f"{device.type}-{name}.lock"


def hold_lock(lock_file: Path, what: str, wait: float = 0) -> FileLock:
    """Take an OS lock that dies with its holder. Raises BusyError if another process has it."""
    if lock_file.is_symlink():  # What it leads to would be emptied.
        raise FileError(f"{lock_file}: is a link; remove it")
    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise BusyError(f"{what} is in use by another process; wait for it, or stop it first") from None
    except OSError as error:
        raise FileError(f"{lock_file}: cannot be written ({error.strerror}); choose another --data-dir") from error
    return lock


def is_held(lock_file: Path) -> bool:
    """Return whether a process holds ``lock_file``. Makes no file where there is none."""
    if not lock_file.exists():
        return False
    try:
        hold_lock(lock_file, lock_file.stem).release()
    except BusyError:
        return True
    return False


def device_busy(data_dir: Path) -> bool:
    """Return whether a process holds a device of this machine. Other machines' CPUs on one ``data_dir`` have distinct
    names; a card's name is its number, so another machine's card counts as one of this machine.
    """
    for lock_file in (data_dir / "locks").glob("*.lock"):
        kind, _, name = lock_file.stem.partition("-")
        if (kind == "cuda" or name == _machine()) and is_held(lock_file):
            return True
    return False


def _machine() -> str:
    """Return this machine's name, as lock files contain it."""
    return safe_name(platform.node(), fallback="here")
