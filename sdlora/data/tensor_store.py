"""Tensors on disk, addressed by the hash of everything that decides them, with an in-memory cache."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora import failpoints
from sdlora.errors import FileError
from sdlora.filesystem.writing import write_atomic

if TYPE_CHECKING:
    import torch

MEMORY_BUDGET = 256 << 20
"""Bytes of tensors kept in memory: 2,000 images at 512 px, so all of a small set."""

Tensors = dict[str, "torch.Tensor"]


def key_of(*parts: object) -> str:
    """Return the hexadecimal SHA-256 of the parts' representations: numbers, strings, tuples of them."""
    return hashlib.sha256("\x1f".join(repr(part) for part in parts).encode()).hexdigest()


class TensorStore:
    """Map from ``key`` to named CPU tensors, in safetensors files that are written atomically and verified when read.

    Without ``folder`` everything stays in memory. With it, at most ``memory`` bytes: the least recently used are
    evicted.
    """

    def __init__(self, folder: Path | None, memory: int = MEMORY_BUDGET) -> None:
        self.folder = folder
        self.memory = memory
        self._in_memory: OrderedDict[str, Tensors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        """Batches are read ahead in a thread, while the loop may read what it measures."""

    def path(self, key: str) -> Path:
        """Return the file of ``key``, in one of 256 folders, so that none grows too long to list."""
        if self.folder is None:
            raise FileError("this store is in memory alone")
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensors | None:
        """Return the tensors of ``key``, or None if there are none or their file is damaged."""
        with self._lock:
            if key in self._in_memory:
                self._in_memory.move_to_end(key)
                return self._in_memory[key]
        found = None if self.folder is None else _load(self.path(key), key)
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, key: str, tensors: Mapping[str, "torch.Tensor"]) -> None:
        """Store a copy of ``tensors`` on the CPU. Raises FileError if the disk is full or not writable."""
        from safetensors.torch import save

        tensors_on_cpu = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        if self.folder is not None:
            write_atomic(self.path(key), save(tensors_on_cpu, {"sha256": _digest(tensors_on_cpu, key)}))
            failpoints.point("cache.kept")
        self._remember(key, tensors_on_cpu)

    def _remember(self, key: str, tensors: Tensors) -> None:
        with self._lock:
            self._bytes += _size(tensors) - _size(self._in_memory.get(key, {}))
            self._in_memory[key] = tensors
            while self.folder is not None and self._bytes > self.memory and len(self._in_memory) > 1:
                self._bytes -= _size(self._in_memory.popitem(last=False)[1])


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _digest(tensors: Tensors, key: str) -> str:
    import torch

    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # as bytes: numpy has no bfloat16
    return digest.hexdigest()


def _load(path: Path, key: str) -> Tensors | None:
    """Return the tensors of one file if the hash of them and their ``key`` matches the stored one, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if digest in (_digest(tensors, key), _digest(tensors, "")) else None  # Version 0.1.0 left it out.
