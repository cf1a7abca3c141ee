"""Locks of devices: one process at a time trains or generates on each."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.filesystem.locks import is_held
from sdlora.filesystem.paths import safe_name
from sdlora.filesystem.reading import find_matching

if TYPE_CHECKING:
    import torch


def device_lock(data_dir: Path, device: "torch.device") -> Path:
    """Return the lock file of a device, the same under all of its names.

    ``cuda`` is ``cuda:0``; a card is known by its own number, as ``CUDA_VISIBLE_DEVICES`` renames it; anything else by
    its machine, as several may share ``data_dir``.
    """
    import torch

    is_card = device.type == "cuda"
    name = safe_name(str(torch.cuda.get_device_properties(device.index or 0).uuid)) if is_card else _machine()
    return data_dir / "locks" / f"{device.type}-{name}.lock"


def device_busy(data_dir: Path) -> bool:
    """Return whether a process holds a device of this machine. Other machines' CPUs on one ``data_dir`` have distinct
    names; a card's name is its number, so another machine's card counts as one of this machine.
    """
    for lock_file in find_matching(data_dir / "locks", "*.lock"):
        kind, _, name = lock_file.stem.partition("-")
        if (kind == "cuda" or name == _machine()) and is_held(lock_file):
            return True
    return False


def _machine() -> str:
    """Return this machine's name, as lock files contain it."""
    return safe_name(platform.node(), fallback="here")
