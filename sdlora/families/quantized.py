"""Linear layers of a frozen base model with 8 or 4 bits per weight.

The layers behave as ``nn.Linear`` does, and their ``weight`` is dequantized on access, so that every adapter method
works with them. The price is a rounding of the base, and the time to unpack a layer when it is used.
"""

import math
from typing import Any, Literal

import torch
from torch import nn

from sdlora.errors import missing_package

QuantizedType = Literal["int8", "nf4"]
BLOCK = 64
"""Weights that share a scale in NF4 (arXiv:2305.14314, section 3), as in bitsandbytes and QLoRA."""
LEVELS = 127
"""Largest int8, to which the largest weight of an output is mapped."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with quantized weights: ``int8`` with a scale per output, or ``nf4``.

    ``scales`` are float32 numbers kept as bytes, so that no change of a model's precision rounds them.
    """

    quantized = True
    packed: torch.Tensor
    scales: torch.Tensor

    def __init__(self, base: nn.Linear, kind: QuantizedType):
        nn.Module.__init__(self)  # Not Linear's own: there is no parameter ``weight``.
        self.in_features, self.out_features, self.kind = base.in_features, base.out_features, kind
        weight = base.weight.detach().float().contiguous()
        packed, scales = _to_int8(weight) if kind == "int8" else _to_nf4(weight)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales.float().contiguous().view(torch.uint8))
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach(), requires_grad=False)
        self.weight_dtype = base.weight.dtype
        """Precision of ``weight``."""
        self.train(base.training)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Dequantized weight, (out, in), computed on each access."""
        return self.unpacked(self.weight_dtype)

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dequantized weight (out, in) in ``dtype``."""
        scales = self.scales.view(torch.float32)
        if self.kind == "int8":
            return self.packed.to(torch.float32).mul_(scales[:, None]).to(dtype)
        return _from_nf4(self.packed, scales, (self.out_features, self.in_features), dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            product: torch.Tensor = _Product.apply(input.to(dtype), self)
            return product if bias is None else product + bias

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLinear":
        super()._apply(fn, recurse)
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device=self.packed.device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """x Wᵀ with W unpacked for the product alone: only the packed weight is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.unpacked(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.layer.unpacked(gradient.dtype), None


@torch.no_grad()
def quantize(model: nn.Module, kind: QuantizedType, device: torch.device) -> None:
    """Quantize every linear layer of ``model`` on ``device``, one by one, so that they never lie there unpacked.

    Raises ConfigError where bitsandbytes, which packs NF4, is not installed.
    """
    if kind == "nf4":
        require_nf4_available()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not isinstance(layer, QuantizedLinear):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantizedLinear(layer.to(device), kind))


def require_nf4_available() -> None:
    """Raise ConfigError if bitsandbytes, which packs NF4, is not installed."""
    try:
        import bitsandbytes.functional  # noqa: F401
    except ImportError as error:
        raise missing_package("model.quantize: nf4", "bitsandbytes", "int8") from error


def quantized_bytes(outputs: int, inputs: int, kind: QuantizedType) -> int:
    """Return the bytes of a quantized weight (outputs, inputs)."""
    if kind == "int8":
        return outputs * inputs + 4 * outputs
    return math.ceil(outputs * inputs / 2) + 4 * math.ceil(outputs * inputs / BLOCK)


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each output's weights as integers from -127 to 127, and their scales."""
    scales = weight.abs().amax(1) / LEVELS
    levels = weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return levels.round().clamp(-LEVELS, LEVELS).to(torch.int8), scales


def _to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax


def _from_nf4(packed: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(absmax=scales, shape=torch.Size(shape), dtype=dtype, blocksize=BLOCK, quant_type="nf4")
    return dequantize_4bit(packed, state)
