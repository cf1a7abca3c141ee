"""Live models made lean: their frozen layers keep for the backward pass only what an adapter's gradient needs.

A layer's class is exchanged for one that computes the same and keeps less (``recompute``). Names, weights and hooks
stay as they are, and without gradients the layers do what they did before: generation with the same models is not
touched. Layers of kinds that are not in ``EFFICIENT_CLASSES`` stay as they are, and keep what they kept.
"""

from collections.abc import Mapping

import torch
from diffusers.models.activations import GEGLU
from torch import nn
from torch.nn import functional
from transformers.activations import QuickGELUActivation

from sdlora.adapters.lora_layer import LoraAdapterLayer
from sdlora.training import cpu_matmul, recomputation
from sdlora.training.recomputation import Make, Recomputation, Steps, tag


def use_memory_efficient_layers(models: Mapping[str, nn.Module]) -> None:
    """Exchange the classes of all layers that can be lean, in place. Call it once the adapter is in."""
    for model in models.values():
        for module in model.modules():
            module.__class__ = EFFICIENT_CLASSES.get(type(module), type(module))
            if isinstance(module, LoraAdapterLayer):
                module.training_kernel = lora_kernel


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _in_own_precision(x, self._again) if _trains(x) else super().forward(x)

    def _again(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if part is None else part.to(x.dtype) for part in (self.weight, self.bias))
        return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _in_own_precision(x, self._again) if _trains(x) else super().forward(x)

    def _again(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if part is None else part.to(x.dtype) for part in (self.weight, self.bias))
        return functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _in_own_precision(x: torch.Tensor, norm: Make) -> torch.Tensor:
    """A norm of x, which can be made again, in the type of x: its sums are float32 inside.

    Autocast would give float32 outputs, twice the bytes, for the next layer to round.
    """
    with torch.autocast(x.device.type, enabled=False):
        return tag(norm(x), Recomputation(x.detach(), norm))


class _Silu(nn.SiLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputation.silu(x) if _learns(x) else super().forward(x)


class _QuickGelu(QuickGELUActivation):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputation.quick_gelu(x) if _learns(x) else super().forward(x)


class _Geglu(GEGLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputation.geglu(self.proj(x)) if _learns(x) else super().forward(x)


class _Linear(nn.Linear):
    """Torch's own keeps nothing more; what may be faster are its products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _learns(x) or not _is_frozen(self) or not cpu_matmul.uses_onednn(x, self.weight):
            return super().forward(x)
        return recomputation.frozen_linear(x, self.weight, self.bias)


class _Conv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _learns(x) or not _is_frozen(self) or self.padding_mode != "zeros":
            return super().forward(x)
        return recomputation.frozen_conv(x, self.weight, self.bias, _steps(self), self.groups)


def lora_kernel(
    base: nn.Module, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
) -> torch.Tensor | None:
    """A LoRA's output over an efficient base layer, in one operation; None for other base layers."""
    if type(base) is _Linear and _is_frozen(base):
        return recomputation.lora_linear(x, base.weight, base.bias, down, up, scale)
    if isinstance(base, _Conv) and _is_frozen(base) and base.groups == 1 and base.padding_mode == "zeros":
        return recomputation.lora_conv(x, base.weight, base.bias, down, up, scale, _steps(base))
    return None


EFFICIENT_CLASSES: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    nn.SiLU: _Silu,
    QuickGELUActivation: _QuickGelu,
    GEGLU: _Geglu,
    nn.Linear: _Linear,
    nn.Conv2d: _Conv,
}


def _trains(x: torch.Tensor) -> bool:
    """Return whether x is part of a step: also of what a step asks the bare base, in the same arithmetic."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)


def _learns(x: torch.Tensor) -> bool:
    """Return whether a gradient flows back through x."""
    return torch.is_grad_enabled() and x.requires_grad


def _is_frozen(layer: nn.Linear | nn.Conv2d) -> bool:
    """Return whether neither weight nor bias trains: a gradient of either would be lost."""
    return not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))


def _steps(conv: nn.Conv2d) -> Steps:
    return conv.stride, conv.padding, conv.dilation
