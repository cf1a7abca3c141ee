"""Protocol of adapter file formats, and the checks that they share.

A format knows how files spell the layers and tensors of an ``AdapterState``, and nothing else of models or methods. A
new one is one file and one row in ``FORMATS``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

Slot = tuple[str, str]
"""A layer's classic path (``unet.….attn2.to_k``) and the name of one of its tensors in the neutral form, or ``alpha``,
or one of ``RAW``."""

RAW = ("dora_scale", "weight", "on_input")
"""Tensors of files that get their neutral names once their layer is complete: DoRA's lengths, whose shape tells their
axis, and (IA)³'s scales, whose side another tensor tells."""
BIG = 1 << 28
"""More weights than any layer has (SDXL's largest has 2.9e7): larger shapes belong to no adapter."""
RANKS = 1 << 14
"""Largest rank that is accepted."""


class Format(Protocol):
    """One way to spell adapters in safetensors files."""

    name: str

    def parse(self, key: str) -> Slot | None:
        """Return the layer and tensor that ``key`` names; None if this format has no such name."""
        ...

    def can_read(self, keys: Iterable[str]) -> bool:
        """Return whether any of a file's keys is in this format."""
        ...

    def read(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> AdapterState:
        """Convert a file's tensors to an adapter; keys that ``parse`` does not know are ignored. Raises FormatError."""
        ...

    def write(self, state: AdapterState) -> "tuple[dict[str, Tensor], dict[str, str]]":
        """Return tensors and header of a file with ``state``. Raises FormatError for a layer that the format cannot
        spell.
        """
        ...


def group_by_layer(
    tensors: "Mapping[str, Tensor]", parse: Callable[[str], Slot | None], alpha: Callable[[str, int], float]
) -> dict[str, ModuleState]:
    """Group a file's tensors by layer, in the file's order; ``alpha(path, rank)`` is used for layers without one.

    Raises FormatError for a layer that is incomplete, given twice, or whose tensors have inconsistent shapes.
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
    tensors = _named(path, {name: tensor for name, tensor in found.items() if name != "alpha"})
    if not tensors:
        raise FormatError(f"{path}: its alpha is there without its down and up")
    try:
        lacks = parametrizations.missing_tensors(tensors)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    if lacks:
        there = " and ".join(found)
        raise FormatError(f"{path}: its {there} is there without its {' and '.join(lacks)}")
    _require_shapes(path, tensors)
    rank = parametrizations.rank(tensors)
    if "alpha" not in found:
        return ModuleState(tensors, alpha(path, rank)) if rank else ModuleState(tensors)
    if found["alpha"].numel() != 1:
        raise FormatError(f"{path}: its alpha has {found['alpha'].numel()} values instead of one")
    return ModuleState(tensors, float(found["alpha"]))


def _named(path: str, found: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors by their neutral names, once all of a layer's are there."""
    tensors = {name: tensor for name, tensor in found.items() if name not in RAW}
    for name in ("magnitude", "diff_b"):  # PEFT keeps a convolution's lengths as (1, out, 1, 1).
        if name in tensors:
            tensors[name] = tensors[name].flatten()
    if "dora_scale" in found:
        lengths = found["dora_scale"]
        by_input = lengths.ndim > 1 and lengths.shape[0] == 1 and lengths.shape[1] > 1
        tensors["input_magnitude" if by_input else "magnitude"] = lengths.flatten()
    if "weight" in found or "on_input" in found:
        if found.keys() & {"weight", "on_input"} != {"weight", "on_input"} or found["on_input"].numel() != 1:
            raise FormatError(f"{path}: (IA)³ takes a weight and one number on_input, of which one is missing")
        tensors["input_scale" if bool(found["on_input"]) else "output_scale"] = found["weight"]
    return tensors


def _require_shapes(path: str, tensors: "Mapping[str, Tensor]") -> None:
    """Raise FormatError unless the tensors multiply out to the update of one layer."""
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
    if any(not tensor.ndim or 0 in tensor.shape or max(tensor.shape, default=1) > BIG for tensor in tensors.values()):
        raise FormatError(f"{path}: {shapes} do not go together: a side is missing, empty, or longer than any layer's")
    if (parametrizations.rank(tensors) or 0) > RANKS:
        raise FormatError(f"{path}: its rank {parametrizations.rank(tensors)} is over {RANKS}: no adapter has it")
    if "down" in tensors:
        down, up = tensors["down"], tensors["up"]
        if down.ndim not in (2, 4) or up.ndim not in (2, 4) or any(side != 1 for side in up.shape[2:]):
            raise FormatError(f"{path}: {shapes} are no low-rank layer's shapes")
        if down.shape[0] != up.shape[1] and "mid" not in tensors:
            ranks = f"their ranks are {down.shape[0]} and {up.shape[1]}"
            raise FormatError(f"{path}: {shapes} do not go together: {ranks}")
    try:
        out, inputs = parametrizations.layer_size(tensors)
        cores = [tensors[name].shape for name in ("mid", "hada_t1", "hada_t2", "lokr_t2") if name in tensors]
        odd = any(len(core) != 4 or core[0] != core[1] for core in cores)
        odd = odd or ("lokr_w2" in tensors and tensors["lokr_w2"].ndim not in (2, 4))
        odd = odd or ("diff" in tensors and tensors["diff"].ndim not in (2, 4))
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError):
        odd = True
    if odd:
        raise FormatError(f"{path}: {shapes} do not go together")
    if (out or 1) * (inputs or 1) > BIG:
        raise FormatError(f"{path}: {shapes} are for a layer of {out} outputs and {inputs} inputs, which no base has")
    lengths = {"magnitude": out, "diff_b": out}
    if "input_magnitude" in tensors:
        kernel = tensors["mid" if "mid" in tensors else "down"][0, 0].numel()
        lengths["input_magnitude"] = (inputs or 0) // kernel
    for name, side in lengths.items():
        if name in tensors and tensors[name].numel() != side:
            raise FormatError(f"{path}: its {name} has {tensors[name].numel()} values for {side} channels")
