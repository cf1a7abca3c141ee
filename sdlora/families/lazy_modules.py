"""Modules of a base model that take memory once they are needed."""

from collections.abc import Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class LazyModules(Mapping[str, "nn.Module"]):
    """Modules by component; one that is closed opens when it is read: it is cast, and moved to its device.

    Closed modules keep the precision of their files. Their weights are mapped from these, not read into memory, and
    they are on no other device than the CPU.
    """

    def __init__(self, modules: "Mapping[str, nn.Module]", closed: "Mapping[str, torch.dtype] | None" = None):
        """Hold ``modules``; those in ``closed`` open in the precision given there."""
        self._modules = dict(modules)
        self._names = [*modules]
        self._closed: dict[str, dict[str, Any]] = {name: {"dtype": dtype} for name, dtype in (closed or {}).items()}

    def __getitem__(self, name: str) -> "nn.Module":
        if name not in self._names:
            raise KeyError(name)
        if name in self._closed:
            self._open(name)
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def _open(self, name: str) -> None:
        from torch import nn

        module = self._modules[name]
        try:
            nn.Module.to(module, **self._closed[name])  # diffusers' own warns of layers that there are not.
        except BaseException:
            nn.Module.to(module, "cpu")  # What had moved before the memory ended must not keep it.
            raise
        del self._closed[name]  # Only now: without memory for it, it is still closed.

    def open(self) -> None:
        """Open all modules."""
        for name in self:
            self[name]

    def without(self, *names: str) -> "LazyModules":
        """Return a view of the other modules: what opens there is open here too."""
        view = copy(self)
        view._names = [name for name in self._names if name not in names]
        return view

    def place(self, name: str, device: "torch.device | str | None" = None, dtype: "torch.dtype | None" = None) -> None:
        """Move a module, or change its precision; a closed one opens there."""
        to: dict[str, Any] = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
        if name in self._closed:
            self._closed[name] |= to
        elif to:
            self._modules[name].to(**to)

    def peek(self, name: str) -> Any:
        """Return a module without opening it, for its config and its layers."""
        return self._modules[name]

    def device_of(self, name: str) -> "torch.device":
        """Return the device that a module is on, or will open on."""
        import torch

        if name in self._closed:  # By a tensor, which tells "cuda" which card it is.
            return torch.empty(0, device=self._closed[name].get("device", "cpu")).device
        return next(self._modules[name].parameters()).device

    @property
    def closed_bytes(self) -> int:
        """Bytes that the closed modules will take once they are open."""
        sizes = {name: sum(weight.numel() for weight in self._modules[name].parameters()) for name in self._closed}
        return sum(size * self._closed[name]["dtype"].itemsize for name, size in sizes.items())
