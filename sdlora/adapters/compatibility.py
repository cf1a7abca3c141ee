"""Does an adapter fit a base? By the names and shapes of its layers, before anything is touched."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.adapters.targets import adaptable_layers
from sdlora.errors import MismatchError
from sdlora.families import denoisers

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


def require_compatible(models: Mapping[str, "nn.Module"], state: AdapterState) -> None:
    """Raises MismatchError if a layer of ``state`` is not in ``models``, or has another shape there; it names both."""
    bases = dict(adaptable_layers(models))
    missing = [path for path in state.modules if path not in bases]
    if missing:
        count = f"{len(missing)} of its {len(state.modules)} layers are"
        raise MismatchError(f"{_mismatch_reason(state, bases)}: {count} not in this one, such as {missing[0]}")
    for path, shapes in incompatible_layers(models, state).items():
        raise MismatchError(f"{_mismatch_reason(state, bases)}: at {path} {shapes}")


def incompatible_layers(models: Mapping[str, "nn.Module"], state: AdapterState) -> dict[str, str]:
    """The layers of ``state`` that ``models`` cannot take, each with its reason. Modules on the meta device will do."""
    bases, found = dict(adaptable_layers(models)), {}
    for path, module in state.modules.items():
        reason = _incompatibility(module, bases[path]) if path in bases else "there is no such layer"
        if reason:
            found[path] = reason
    return found


def _incompatibility(module: ModuleState, base: Any) -> str:
    """Why ``module`` cannot go into the layer ``base``; empty if it can."""
    weight = tuple(base.weight.shape)
    ours, theirs = (weight[0], math.prod(weight[1:])), parametrizations.layer_size(module.tensors)
    if "diff_b" in module.tensors and base.bias is None:
        return "it changes a bias, and there is none"
    if "down" in module.tensors and "mid" not in module.tensors:
        down, up = (tuple(module.tensors[name].shape) for name in ("down", "up"))
        takes = low_rank_shapes(base, down[0])
        if (without_trailing_ones(down), without_trailing_ones(up)) != (
            without_trailing_ones(takes[0]),
            without_trailing_ones(takes[1]),
        ):
            return f"it has {down} and {up}, this one takes {takes[0]} and {takes[1]}"
    elif _kernel_size(module) not in ((), weight[2:]):
        return f"its {module.method} is for a kernel of {_kernel_size(module)}, this one has {weight[2:] or 'none'}"
    elif any(own not in (None, side) for own, side in zip(theirs, ours, strict=True)):
        named = ["any" if side is None else str(side) for side in theirs]
        return (
            f"its {module.method} is for {named[0]} outputs of {named[1]} inputs, this one has {ours[0]} of {ours[1]}"
        )
    return ""


def _kernel_size(module: ModuleState) -> Shape:
    """Kernel that a module's tensors tell; empty for a linear layer, 1 x 1, and where they do not tell."""
    shape = module.parametrization.delta_shape(module.tensors)
    return without_trailing_ones(tuple(side or 0 for side in shape))[2:]


def low_rank_shapes(base: Any, rank: int) -> tuple[Shape, Shape]:
    """The shapes of ``down`` and ``up``: (rank, in) and (out, rank); for a convolution with its kernel, and 1 x 1."""
    if hasattr(base, "in_channels"):
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
    return (rank, base.in_features), (base.out_features, rank)


def input_widths(state: AdapterState) -> dict[str, int]:
    """Count the numbers that each layer of an adapter reads; 0 where its tensors do not tell."""
    return {path: parametrizations.layer_size(module.tensors)[1] or 0 for path, module in state.modules.items()}


def cross_attention_width(widths: Mapping[str, int]) -> int | None:
    """Return the width of the text that a denoiser reads, by its layers' inputs; None if there are none."""
    components = denoisers()
    named = ((components.get(path.partition(".")[0]), path, width) for path, width in widths.items())
    read = (width for denoiser, path, width in named if denoiser and path.endswith(denoiser.layers.text_inputs))
    return next(filter(None, read), None)


def _mismatch_reason(state: AdapterState, bases: Mapping[str, Any]) -> str:
    theirs = cross_attention_width(input_widths(state))
    ours = cross_attention_width({path: low_rank_shapes(base, 1)[0][1] for path, base in bases.items()})
    if theirs and ours and theirs != ours:
        return f"this adapter is for a base with {theirs}-wide text, the base loaded has {ours}-wide text"
    return "this adapter is for another base than the one loaded"


def without_trailing_ones(shape: Shape) -> Shape:
    """A shape without trailing ones: tools differ over whether a 1 x 1 projection's is (out, in) or (out, in, 1, 1)."""
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape
