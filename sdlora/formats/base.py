"""What an adapter file format is, and what all of them check alike.

A format knows how files spell the layers and tensors of an ``AdapterState``, and nothing else of models or
methods. A new one is one file and one row in ``FORMATS``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from sdlora.adapters.base import AdapterState, ModuleState
from sdlora.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

Slot = tuple[str, str]
"""A layer's classic path (``unet.….attn2.to_k``), and one of its tensors: ``down``, ``up`` or ``alpha``."""


class Format(Protocol):
    """One way to spell adapters in safetensors files."""

    name: str

    def parse(self, key: str) -> Slot | None:
        """What a tensor of this name in a file is; None if this format has no such name."""
        ...

    def can_read(self, keys: Iterable[str]) -> bool:
        """Whether any of a file's keys is this format's."""
        ...

    def read(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> AdapterState:
        """A file's tensors, without keys that ``parse`` does not know, as an adapter; raises FormatError."""
        ...

    def write(self, state: AdapterState) -> "tuple[dict[str, Tensor], dict[str, str]]":
        """Tensors and header of a file with ``state``; raises FormatError for a layer that the format cannot spell."""
        ...


def gather(
    tensors: "Mapping[str, Tensor]", parse: Callable[[str], Slot | None], alpha: Callable[[str, int], float]
) -> dict[str, ModuleState]:
    """A file's tensors by layer, in the file's order; ``alpha(path, rank)`` for layers that carry none.

    Raises FormatError for a layer that is incomplete, given twice, or whose two tensors do not go together.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot = parse(key)
        if slot is None:
            continue
        path, name = slot
        if name in layers.setdefault(path, {}):
            raise FormatError(f"{key}: the file gives {name} of {path} twice")
        layers[path][name] = tensor
    return {path: _module(path, found, alpha) for path, found in layers.items()}


def _module(path: str, found: "dict[str, Tensor]", alpha: Callable[[str, int], float]) -> ModuleState:
    missing = [name for name in ("down", "up") if name not in found]
    if missing:
        raise FormatError(f"{path}: its {' and '.join(found)} is there without its {' and '.join(missing)}")
    down, up = found["down"], found["up"]
    shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or any(side != 1 for side in up.shape[2:]):
        raise FormatError(f"{path}: {shapes} are no low-rank layer's shapes")
    if down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise FormatError(f"{path}: {shapes} do not go together: their ranks are {down.shape[0]} and {up.shape[1]}")
    if "alpha" not in found:
        return ModuleState({"down": down, "up": up}, alpha(path, down.shape[0]))
    if found["alpha"].numel() != 1:
        raise FormatError(f"{path}: its alpha has {found['alpha'].numel()} values instead of one")
    return ModuleState({"down": down, "up": up}, float(found["alpha"]))
