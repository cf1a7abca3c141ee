"""Several LoRAs of one layer computed as one, while pictures are drawn.

y = W x + Σ sᵢ Bᵢ Aᵢ x = W x + [s₁ B₁, s₂ B₂, ...] [A₁; A₂; ...] x: one pair of products, however many adapters there
are, where PEFT's layer takes a pair each, and three passes over the output besides. The stacked pair is kept until a
tensor, the device or the precision is another; another scale is one multiplication of B more. What trains,
DoRA, and a scale for each sample go PEFT's way; so does an adapter by itself, which then draws the same to the bit in
training and from its file.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch import nn

from sdlora.adapters import parametrizations

FIELDS = 5
"""Entries an adapter in the list that says what a pair was made of: down, its version, up, its version, the scale."""


class StackedLora:
    """PEFT's LoRA layer, with one way more to compute what it means."""

    _stacked: "tuple[list[Any], torch.Tensor, torch.Tensor] | None" = None
    """What the pair was made of, and the pair: (Σ r, in, ...), and (out, Σ r, ...) in float32 without scales."""
    _scaled: "tuple[list[float], torch.Tensor] | None" = None
    """Scales, and the second of the pair with them."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parts = [] if args or kwargs else self._parts()
        if not parts:
            self.clear_stacked()
            output: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return output
        result = self.base_layer(x)  # type: ignore[attr-defined]
        return self._add(result, x.to(result.dtype), *self._pair(parts, result))

    def _parts(self) -> list[Any]:
        """What the active adapters add, as a flat list of tensors, versions and scales. Empty where PEFT is to do it.

        It is compared with that of the last call; a list of all keeps this a matter of microseconds.
        """
        host: Any = self
        if torch.is_grad_enabled() or host.disable_adapters or host.merged:
            return []
        found: list[Any] = []
        downs, ups, scales, variants = host.lora_A, host.lora_B, host.scaling, host.lora_variant
        for key in host.active_adapters:
            if key not in scales:
                continue
            down, up, scale = downs[key].weight, ups[key].weight, scales[key]
            drops = host.training and not isinstance(host.lora_dropout[key], nn.Identity)
            if key in variants or not isinstance(scale, float | int) or down.requires_grad or up.requires_grad or drops:
                return []
            found += (down, tensor_version(down), up, tensor_version(up), scale)
        return found if len(found) > FIELDS else []

    def _pair(self, parts: list[Any], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stacked pair for ``parts``, where ``like`` is and in its precision."""
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
        """Let go of the pair, and of the adapters' tensors with it."""
        self._stacked = self._scaled = None

    def _add(self, result: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """``result``, which nobody else holds, with the pair's products of ``x`` in it."""
        raise NotImplementedError


class StackedLoraLinear(StackedLora, Linear):
    def _add(self, result: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(x.flatten(0, -2), down)
        result.view(-1, result.shape[-1]).addmm_(low, up.T)
        return result


class StackedLoraConv2d(StackedLora, Conv2d):
    def _add(self, result: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        first: Any = next(iter(self.lora_A.values()))  # They differ in nothing but their ranks.
        low = first._conv_forward(x, down, None)
        return result.add_(nn.functional.conv2d(low, up))


def stack_pairs(downs: list[torch.Tensor], ups: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[A₁; A₂; ...] and [B₁, B₂, ...] in float32, each row of the first of length 1 and its length in the second.

    So what stands between the two products is no larger than the layer's own outputs, and float16 can hold it.
    """
    down = torch.cat([tensor.float() for tensor in downs])
    up = torch.cat([tensor.float() for tensor in ups], 1)
    length = down.flatten(1).norm(dim=1).clamp(min=parametrizations.TINY)
    return down / length.view(-1, *[1] * (down.ndim - 1)), up * length.view(1, -1, *[1] * (up.ndim - 2))


def use_stacked_lora(host: nn.Module) -> None:
    """Let PEFT's own LoRA layer mix so, unless its base is a convolution of several groups."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {Linear: StackedLoraLinear, Conv2d: StackedLoraConv2d}
    kind = kinds.get(type(host))
    base: Any = host.base_layer
    if kind is not None and getattr(base, "groups", 1) == 1:
        host.__class__ = kind  # PEFT chooses the class by the base's; a subclass has the same state


def _same_objects(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists hold the same objects, or equal ones that are no tensors."""
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, torch.Tensor) and a == b) for a, b in zip(one, other, strict=True)
    )


def tensor_version(tensor: torch.Tensor) -> int:
    """Which goes up with each change in place."""
    return 0 if tensor.is_inference() else tensor._version
