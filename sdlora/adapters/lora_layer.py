"""Adapter layer of LoRA and DoRA, with the kernels that compute it.

* Plain: y = W x + Σ sᵢ Bᵢ Aᵢ x, adapter by adapter, for training and whatever the others leave.
* Stacked, while images are generated: W x + [s₁ B₁, s₂ B₂, ...] [A₁; A₂; ...] x. One pair of products serves any number
  of adapters, where the plain kernel takes a pair each, and three passes over the output besides. The stacked pair is
  kept until a tensor, the device or the precision is another; another scale is one multiplication of B more. What
  trains, DoRA and per-sample scales are left to the plain kernel; so is an adapter by itself, which then generates the
  same to the bit in training and from its file.
* ``training_kernel``: base and update in one operation, which training may set.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sdlora.adapters.adapter_layers import AdapterLayer, per_channel, weight_norm, without_bias
from sdlora.adapters.compatibility import low_rank_shapes
from sdlora.adapters.parametrizations import TINY
from sdlora.adapters.state import ModuleState

FIELDS = 5
"""Entries of an adapter in the list that says what a pair was made of: down, its version, up, its version, scale."""
TrainingKernel = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, float], "torch.Tensor | None"]
"""(base layer, x, down, up, scale) -> y, or None where it does not serve the base layer."""


class LoraAdapterLayer(AdapterLayer):
    """LoRA and DoRA over a linear layer or convolution."""

    adapter_layer_names = ("down", "up", "magnitude")
    other_param_names = ("alpha", "dropout")
    innermost = True
    training_kernel: TrainingKernel | None = None
    _stacked: "tuple[list[Any], torch.Tensor, torch.Tensor] | None" = None
    """Sources of the pair, and the pair: (Σ r, in, ...), and (out, Σ r, ...) in float32 without scales."""
    _scaled: "tuple[list[float], torch.Tensor] | None" = None
    """Scales, and the second of the pair with them."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.alpha: dict[str, float] = {}
        self.dropout: dict[str, float] = {}

    def add_adapter(self, key: str, module: ModuleState, dropout: float = 0.0) -> None:
        super().add_adapter(key, _in_layer_shapes(self.get_base_layer(), module))
        self.alpha[key], self.dropout[key] = module.alpha, dropout
        if "magnitude" not in module.tensors:  # DoRA has its alpha / rank inside.
            self.scales[key] = self.units[key] = module.scale

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.clear_stacked()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not args and not kwargs:
            y = self._training(x)
            if y is not None:
                return y
            if parts := self._parts():
                result = self.base_layer(x)
                return self._add(result, x.to(result.dtype), *self._pair(parts, result))
        self.clear_stacked()
        return self._plain(x, *args, **kwargs)

    def _plain(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        dtype, downs = result.dtype, self.params("down")
        for key in self.active_adapters:
            if key in downs:
                x = x.to(downs[key].dtype)
                if key in self.params("magnitude"):
                    result = result + (self._dora(key, x, result) * self.scales[key]).to(result.dtype)
                else:
                    result = result + self._low(key, x) * self.scales[key]
        return result.to(dtype)

    def _low(self, key: str, x: torch.Tensor) -> torch.Tensor:
        """up(down(x)) of one adapter."""
        down, up = self.params("down")[key], self.params("up")[key]
        x = functional.dropout(x, self.dropout[key]) if self.training and self.dropout[key] else x
        return self._product(x, down, up)

    def _product(self, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        base: Any = self.get_base_layer()
        if isinstance(base, nn.Linear):
            return functional.linear(functional.linear(x, down), up)
        return functional.conv2d(functional.conv2d(x, down, None, base.stride, base.padding, base.dilation), up)

    def _dora(self, key: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """DoRA (arXiv:2402.09353, eq. 5): δ(x) = (f - 1) W x + f ΔW x, f = m / ‖W + ΔW‖.

        PEFT's own takes the norm in the precision of the base, forms ΔW for it, and lets the scale into it. Here it is
        float32, ‖w + Δw‖² = ‖w‖² + 2 w·Δw + ‖Δw‖² by rows, where the last two need products of the rank's size only;
        and a scale moves the output between the base's (0) and the adapter's (1). The norm has no gradient
        (section 4.3).
        """
        base: Any = self.get_base_layer()
        down, up = self.params("down")[key], self.params("up")[key]
        scale = self.alpha[key] / len(down)
        factor = per_channel(self.params("magnitude")[key] / weight_norm(base, down, up, scale), base)
        alone = self.base_layer is base and self.active_adapters[0] == key
        low = self._low(key, x) * scale
        return (factor - 1) * without_bias(base, x, result if alone else None) + factor * low

    def _training(self, x: torch.Tensor) -> torch.Tensor | None:
        """Output by ``training_kernel``; None unless exactly one LoRA is active, with one scale and no dropout."""
        if self.training_kernel is None or not torch.is_grad_enabled():
            return None
        keys = [key for key in self.active_adapters if key in self.scales]
        if len(keys) != 1 or keys[0] in self.params("magnitude") or (self.training and self.dropout[keys[0]]):
            return None
        [key] = keys
        if not isinstance(scale := self.scales[key], float | int):
            return None
        return self.training_kernel(self.base_layer, x, self.params("down")[key], self.params("up")[key], float(scale))

    def _parts(self) -> list[Any]:
        """Return the active adapters as a flat list of tensors, versions and scales; empty for the plain kernel.

        It is compared with that of the last call; a list of all keeps this a matter of microseconds.
        """
        if torch.is_grad_enabled():
            return []
        found: list[Any] = []
        downs, ups, magnitudes = (self.params(name) for name in self.adapter_layer_names)
        for key in self.active_adapters:
            if key not in self.scales:
                continue
            down, up, scale = downs[key], ups[key], self.scales[key]
            drops = self.training and self.dropout[key]
            odd = key in magnitudes or not isinstance(scale, float | int)
            if odd or down.requires_grad or up.requires_grad or drops:
                return []
            found += (down, tensor_version(down), up, tensor_version(up), scale)
        return found if len(found) > FIELDS else []

    def _pair(self, parts: list[Any], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stacked pair for ``parts``, on the device and in the precision of ``like``."""
        downs, ups, scales = parts[::FIELDS], parts[2::FIELDS], parts[4::FIELDS]
        wanted = [*downs, *parts[1::FIELDS], *ups, *parts[3::FIELDS], like.device, like.dtype]
        if self._stacked is None or not _same_objects(self._stacked[0], wanted):
            down, up = stack_pairs(downs, ups)
            self._stacked, self._scaled = (wanted, down.to(like.device, like.dtype), up.to(like.device)), None
        _, down, up = self._stacked
        if self._scaled is None or self._scaled[0] != scales:
            each = [scale for scale, tensor in zip(scales, downs, strict=True) for _ in range(len(tensor))]
            factors = torch.tensor(each, device=up.device).view(1, -1, *[1] * (up.ndim - 2))
            self._scaled = scales, (up * factors).to(like.dtype)
        return down, self._scaled[1]

    def clear_stacked(self) -> None:
        """Release the pair, and the adapters' tensors with it."""
        self._stacked = self._scaled = None

    def _add(self, result: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """``result``, which nobody else has, with the pair's products of ``x`` in it."""
        if not isinstance(self.get_base_layer(), nn.Linear):
            return result.add_(self._product(x, down, up))
        result.view(-1, result.shape[-1]).addmm_(functional.linear(x.flatten(0, -2), down), up.T)
        return result


def _in_layer_shapes(base: Any, module: ModuleState) -> ModuleState:
    """The same tensors, those of a Tucker form multiplied out, in the shapes that the base layer's kernels take."""
    own = dict(module.tensors)
    if "mid" in own:
        own["down"] = torch.einsum("pq...,qi->pi...", own.pop("mid").float(), own["down"].float().flatten(1))
    for name, shape in zip(("down", "up"), low_rank_shapes(base, len(own["down"])), strict=True):
        own[name] = own[name].reshape(shape)
    if "magnitude" in own:
        own["magnitude"] = own["magnitude"].flatten()
    return ModuleState(own, module.alpha)


def stack_pairs(downs: list[torch.Tensor], ups: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[A₁; A₂; ...] and [B₁, B₂, ...] in float32, each row of the first of length 1 and its length in the second.

    So what stands between the two products is no larger than the layer's own outputs, and float16 can hold it.
    """
    down = torch.cat([tensor.float() for tensor in downs])
    up = torch.cat([tensor.float() for tensor in ups], 1)
    length = down.flatten(1).norm(dim=1).clamp(min=TINY)
    return down / length.view(-1, *[1] * (down.ndim - 1)), up * length.view(1, -1, *[1] * (up.ndim - 2))


def _same_objects(one: list[Any], other: list[Any]) -> bool:
    """Return whether two lists hold the same objects, or equal ones that are no tensors."""
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, torch.Tensor) and a == b) for a, b in zip(one, other, strict=True)
    )


def tensor_version(tensor: torch.Tensor) -> int:
    """Return the tensor's in-place version counter."""
    return 0 if tensor.is_inference() else tensor._version
