"""(IA)³: learnt scales of activations (arXiv:2205.05638)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from sdlora.adapters.method import AddedLayers, validate_targets
from sdlora.adapters.parametrizations import Parametrization, Tensors
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.adapters.adapter_layers import AdapterLayer

FEED_FORWARD = (".ff.net.2", ".mlp.fc2")
"""Layers whose input is scaled, as the paper has it (section 3.3); of the others the output is."""


class ChannelScale(Parametrization):
    """output_scale (out,) or input_scale (in,): by how much the scale differs from 1. arXiv:2205.05638, section 3.3.

    Of a convolution (1, out, 1, 1) or (1, in, 1, 1), as LyCORIS keeps it.
    """

    title = "(IA)³"
    required, leading = (("output_scale", "input_scale"),), ("output_scale", "input_scale")
    needs_base = True

    def unscaled_delta(self, tensors: Tensors) -> "torch.Tensor":
        raise ValueError("(IA)³ has no update of its own: it scales the base's weight")

    def delta_weight(self, tensors: Tensors, scale: float, weight: "torch.Tensor") -> "torch.Tensor":
        by_output = "output_scale" in tensors
        shape = (-1, *[1] * (weight.ndim - 1)) if by_output else (1, -1, *[1] * (weight.ndim - 2))
        return weight * tensors["output_scale" if by_output else "input_scale"].view(shape)

    def delta_shape(self, tensors: Tensors) -> tuple[int | None, ...]:
        own = {name: tensor.numel() for name, tensor in tensors.items()}
        return own.get("output_scale"), own.get("input_scale")

    def delta_square(self, tensors: Tensors) -> float:
        """Sum of the squared scales: the update's own needs the base's weight."""
        return float(sum(scale.double().square().sum() for scale in tensors.values()))

    def comparable(self, tensors: Tensors, scale: float) -> "list[torch.Tensor]":
        return [1 + scale for scale in tensors.values()]

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        from sdlora.adapters.adapter_layers import Ia3AdapterLayer

        return Ia3AdapterLayer


class Ia3(AddedLayers):
    """A scale for each channel of keys, values and what is between the layers of a feed-forward net."""

    parametrization: ClassVar[Parametrization] = ChannelScale()

    method: Literal["ia3"] = "ia3"

    targets: Annotated[str, AfterValidator(validate_targets)] = "ia3"
    """Layers to adapt: `ia3` is the paper's choice; any other group or path is allowed."""

    def init_state(self, path: str, base: Any, generator: "torch.Generator") -> ModuleState:
        """No difference to a scale of 1."""
        import torch

        by_input = path.endswith(FEED_FORWARD)
        count, beside = base.weight.shape[1 if by_input else 0], base.weight.ndim - 2
        scale = torch.zeros(1, count, *[1] * beside) if beside else torch.zeros(count)
        return ModuleState({"input_scale" if by_input else "output_scale": scale})
