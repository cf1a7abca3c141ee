"""Meaning of an adapter's tensors: which method they are, and the update of the layer's weight that they stand for.

W' = W + s · ΔW for every method, with W (out, in, ...) and s the scale at which the adapter is used. The tensors' names
are those of a ``ModuleState``; ``unscaled_delta`` and ``delta_weight`` are the published formulas and nothing else:
live layers, files and tools are all checked against them.
"""

import math
from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar

from sdlora.errors import FormatError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.adapters.adapter_layers import AdapterLayer

Tensors = Mapping[str, "torch.Tensor"]

TINY = 1e-24
"""Square of the least length that DoRA divides by: outputs whose weights are all zero stay so."""


class Parametrization:
    """Tensors of one method: their names, the formula of ΔW, and the layer that computes it in a live model."""

    title: ClassVar[str]
    """Display name."""
    required: ClassVar[tuple[tuple[str, ...], ...]]
    """Alternatives, of each of which one is there (names joined by ``+`` come together)."""
    optional: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[tuple[str, ...]] = ()
    """Tensors whose first side is the rank; without any of them there is no rank, and alpha means nothing."""
    leading: ClassVar[tuple[str, ...]]
    """Tensors to the first of which, where it is there, ΔW is proportional."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Tensors that ``unscaled_delta`` leaves out."""
    needs_base: ClassVar[bool] = False
    """ΔW depends on the base's weight."""
    flattens_kernel: ClassVar[bool] = False
    """The tensors of a convolution have its kernel in their columns, and do not tell its sides."""

    @cached_property
    def names(self) -> set[str]:
        """Names of all tensors that a layer can have."""
        return {name for ways in self.required for way in ways for name in way.split("+")} | {*self.optional}

    def unscaled_delta(self, tensors: "Tensors") -> "torch.Tensor":
        """ΔW (out, in, ...) without alpha / rank; of DoRA the low-rank part alone.

        LoHa without Tucker tensors gives (out, in · kernel). Raises ValueError where only the base's weight gives it.
        """
        raise NotImplementedError

    def delta_weight(self, tensors: "Tensors", scale: float, weight: "torch.Tensor") -> "torch.Tensor":
        """ΔW of the shape of ``weight``; all are float32 and on one device."""
        return scale * self.unscaled_delta(tensors).reshape(weight.shape)

    def delta_shape(self, tensors: "Tensors") -> tuple[int | None, ...]:
        """Shape of ``unscaled_delta``; None for a side that the tensors do not tell."""
        return _delta_shape(self, tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items()))

    def delta_square(self, tensors: "Tensors") -> float:
        """‖ΔW‖² without alpha / rank, summed in float64."""
        return float(self.unscaled_delta(tensors).double().square().sum())

    def low_rank_factors(self, tensors: "Tensors") -> "tuple[torch.Tensor, torch.Tensor] | None":
        """``up`` (out, r) and ``down`` (r, in · kernel), whose product is ``unscaled_delta``; None if it is none."""
        return None

    def comparable(self, tensors: "Tensors", scale: float) -> "list[torch.Tensor]":
        """Tensors that two layers of the same effect share, whatever their factors."""
        return [scale * self.unscaled_delta(tensors), *(tensors[name] for name in self.beside if name in tensors)]

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        """Adapter layer for the linear layer or convolution ``base``."""
        raise NotImplementedError


@lru_cache(maxsize=1024)
def _delta_shape(own: Parametrization, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[int | None, ...]:
    """Shape of ΔW, from those of its tensors: most layers of a model share theirs, and torch takes a millisecond."""
    import torch

    return tuple(own.unscaled_delta({name: torch.empty(shape, device="meta") for name, shape in shapes}).shape)


class FullDifference(Parametrization):
    """A whole difference of weights: diff, of the weight's shape, and diff_b (out,) of the bias.

    Files of other tools hold it; no method trains it.
    """

    title = "full difference"
    required, optional, leading, beside = (("diff",),), ("diff_b",), ("diff",), ("diff_b",)

    def unscaled_delta(self, tensors: "Tensors") -> "torch.Tensor":
        return tensors["diff"]

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        from sdlora.adapters.adapter_layers import FullDiffLayer

        return FullDiffLayer


FULL = FullDifference()


def parametrizations() -> dict[str, Parametrization]:
    """Every parametrization by name: those of the methods, and ``full``."""
    from sdlora.adapters import METHODS

    own = {name: method.parametrization for name, method in METHODS.items() if method.parametrization}
    return own | {"full": FULL}


def method_of(tensors: Collection[str]) -> str:
    """Method whose tensors these are, complete or not. Raises FormatError for names of none, or of several."""
    found = [name for name, own in parametrizations().items() if tensors and set(tensors) <= own.names]
    if not found:
        raise FormatError(f"{', '.join(sorted(tensors))} do not go together: they are of several methods")
    return found[0]


def parametrization_of(tensors: Collection[str]) -> Parametrization:
    """Parametrization of tensors with these names. Raises FormatError for names of none, or of several."""
    return parametrizations()[method_of(tensors)]


def missing_tensors(tensors: "Tensors") -> list[str]:
    """Names of the tensors that a layer lacks to be one of its method."""
    lacks: list[str] = []
    for ways in parametrization_of(tensors).required:
        if not any(set(way.split("+")) <= tensors.keys() for way in ways):
            lacks += [name for name in ways[-1].split("+") if name not in tensors]
    return lacks


def rank(tensors: "Tensors") -> int | None:
    """Rank of a layer's update; None for a method, or a layer, that has none."""
    ranked = parametrization_of(tensors).ranked
    return next((int(tensors[name].shape[0]) for name in ranked if name in tensors), None)


def layer_size(tensors: "Tensors") -> tuple[int | None, int | None]:
    """Outputs, and inputs times the kernel's positions, of the layer that these fit; None where they do not tell."""
    out, *rest = parametrization_of(tensors).delta_shape(tensors)
    return out, None if None in rest else math.prod(side for side in rest if side is not None)
