"""Operations that keep little for the backward pass: nothing that a frozen weight alone would ask for, and nothing
that takes a moment to make again.

Each gives what torch's own operation gives to float rounding; forwards, activations do so to the bit. What is made
again is made by the very function of the forward pass, so that precision and autocast change nothing
(arXiv:1604.06174 does so by whole layers, and pays with their products; these pay with passes over memory alone).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sdlora.adapters.lora_layer import tensor_version
from sdlora.training import cpu_matmul
from sdlora.training.cpu_matmul import Steps

_ATEN = torch.ops.aten
Make = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recomputation:
    """Recipe to make a tensor again: ``make(source)``, of a tensor that the backward pass keeps anyway."""

    source: torch.Tensor
    make: Make

    def then(self, more: Make) -> "Recomputation":
        """Return the recomputation of what ``more`` makes of the tensor."""
        # ``make`` alone, not the recipe: a function that held tensors would make checkpointing vain.
        make = self.make
        return Recomputation(self.source, lambda source: more(make(source)))


def tag(tensor: torch.Tensor, recipe: Recomputation) -> torch.Tensor:
    """``tensor`` itself, from now on with its recipe, for whoever would keep it."""
    tensor._sdlora_recipe = recipe, tensor_version(tensor)  # type: ignore[attr-defined]
    return tensor


def recomputation_of(tensor: torch.Tensor) -> Recomputation:
    """Return that of ``tensor``: to keep it, where nothing else is known, or it was changed since."""
    recipe, noted_version = getattr(tensor, "_sdlora_recipe", (None, None))
    return (
        recipe
        if recipe and noted_version == tensor_version(tensor)
        else Recomputation(tensor.detach(), lambda source: source)
    )


def _keep(ctx: Any, recipe: Recomputation, *others: torch.Tensor) -> None:
    ctx.make = recipe.make
    ctx.save_for_backward(recipe.source, *others)


def _saved_tensors(ctx: Any) -> tuple[torch.Tensor, ...]:
    source, *others = ctx.saved_tensors
    return ctx.make(source), *others


class _Pointwise(Function):
    """An activation: ``forwards(x)``; ``backwards(gradient, x)`` is the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, recipe: Recomputation, forwards: Make, backwards: Callable) -> torch.Tensor:
        _keep(ctx, recipe)
        ctx.backwards = backwards
        return forwards(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return ctx.backwards(gradient, *_saved_tensors(ctx)), None, None, None


def _pointwise(x: torch.Tensor, forwards: Make, backwards: Callable) -> torch.Tensor:
    recipe = recomputation_of(x)
    return tag(_Pointwise.apply(x, recipe, forwards, backwards), recipe.then(forwards))


def silu(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(x)."""
    return _pointwise(x, functional.silu, _ATEN.silu_backward)


QUICK = 1.702
"""The factor with which a sigmoid is nearest to the Gaussian's distribution function."""


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(1.702 x), CLIP's activation."""
    return _pointwise(x, _quick_gelu, _quick_gelu_backward)


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(QUICK * x)


def _quick_gelu_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    gate = torch.sigmoid(QUICK * x)
    return gradient * (gate + QUICK * x * gate * (1 - gate))


def geglu(x: torch.Tensor) -> torch.Tensor:
    """The first half of x (..., 2 C) times the GELU of the second: (..., C) (arXiv:2002.05202)."""
    return _pointwise(x, _geglu, _geglu_backward)


def _geglu(x: torch.Tensor) -> torch.Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def _geglu_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    value, gate = x.chunk(2, dim=-1)
    both = torch.empty_like(x)
    of_value, of_gate = both.chunk(2, dim=-1)
    torch.mul(gradient, functional.gelu(gate), out=of_value)
    of_gate.copy_(_ATEN.gelu_backward(gradient * value, gate))
    return both


class _FrozenLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return cpu_matmul.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return cpu_matmul.linear(gradient.flatten(0, -2), weight.T).unflatten(0, gradient.shape[:-1]), None, None


def frozen_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer whose weights never learn."""
    return _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-any-return]


class _FrozenConv(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, steps: Steps, groups: int
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.steps, ctx.groups = x.shape, steps, groups
        return cpu_matmul.conv(x, weight, bias, steps, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return cpu_matmul.conv_input(ctx.shape, weight, gradient, ctx.steps, ctx.groups), None, None, None, None


def frozen_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, steps: Steps, groups: int
) -> torch.Tensor:
    """A convolution whose weights never learn: its input is not kept."""
    return _FrozenConv.apply(x.to(weight.dtype), weight, bias, steps, groups)  # type: ignore[no-any-return]


class _LowRankLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, recipe: Recomputation, weight: torch.Tensor, bias: torch.Tensor | None,
        down: torch.Tensor, up: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        dtype = weight.dtype
        rows = x.to(dtype).flatten(0, -2)
        low = cpu_matmul.linear(rows, down.to(dtype))
        y = cpu_matmul.linear(rows, weight, bias)
        y.addmm_(low, up.to(dtype).T, alpha=scale)
        _keep(ctx, recipe, weight, low, down, up)
        ctx.scale, ctx.dtype = scale, x.dtype
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, weight, low, down, up = _saved_tensors(ctx)
        dtype, scale = weight.dtype, ctx.scale
        rows = gradient.flatten(0, -2)
        of_low = cpu_matmul.linear(rows, up.to(dtype).T) * scale  # Only now: float16 would round a small ``up`` away.
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = cpu_matmul.linear(rows, weight.T).addmm_(of_low, down.to(dtype)).view(x.shape).to(ctx.dtype)
        of_up = cpu_matmul.linear((low * scale).T, rows.T).T.to(up.dtype)
        of_down = cpu_matmul.linear(of_low.T, x.to(dtype).flatten(0, -2).T).to(down.dtype)
        return of_x, None, None, None, of_down, of_up.contiguous(), None


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """(..., in) -> (..., out): x W' + b + scale · (x down') up' (arXiv:2106.09685, eq. 3), in the precision of W.

    ``weight`` (out, in) is frozen; ``down`` (rank, in) and ``up`` (out, rank) learn, in their own precision.
    """
    return _LowRankLinear.apply(x, recomputation_of(x), weight, bias, down, up, scale)  # type: ignore[no-any-return]


class _LowRankConv(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, recipe: Recomputation, weight: torch.Tensor, bias: torch.Tensor | None,
        down: torch.Tensor, up: torch.Tensor, scale: float, steps: Steps,
    ) -> torch.Tensor:  # fmt: skip
        dtype = weight.dtype
        given = x.to(dtype)
        low = cpu_matmul.conv(given, down.to(dtype), None, steps)
        y = cpu_matmul.conv(given, weight, bias, steps).contiguous()
        points = up.to(dtype).flatten(1).expand(len(x), -1, -1)
        y.flatten(2).baddbmm_(points, low.flatten(2), alpha=scale)
        _keep(ctx, recipe, weight, low, down, up)
        ctx.scale, ctx.steps, ctx.dtype = scale, steps, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, weight, low, down, up = _saved_tensors(ctx)
        dtype, scale, needs_x = weight.dtype, ctx.scale, ctx.needs_input_grad[0]
        planes = gradient.flatten(2)
        points = up.to(dtype).flatten(1).T.expand(len(x), -1, -1)
        of_low = torch.bmm(points, planes).view_as(low) * scale
        of_up = torch.bmm(planes, (low * scale).flatten(2).mT).sum(0).to(up.dtype).view_as(up)
        own, wanted = (x.to(dtype), down.to(dtype), None), (needs_x, True, False)
        of_x, of_down, _ = _ATEN.convolution_backward(of_low, *own, *ctx.steps, False, (0, 0), 1, wanted)
        if needs_x:
            of_x = of_x.add_(cpu_matmul.conv_input(x.shape, weight, gradient, ctx.steps)).to(ctx.dtype)
        return of_x, None, None, None, of_down.to(down.dtype), of_up, None, None


def lora_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    steps: Steps,
) -> torch.Tensor:
    """The same for a convolution: ``down`` (rank, in, h, w) is one of its kind, ``up`` (out, rank, 1, 1) follows."""
    return _LowRankConv.apply(x, recomputation_of(x), weight, bias, down, up, scale, steps)  # type: ignore[no-any-return]
