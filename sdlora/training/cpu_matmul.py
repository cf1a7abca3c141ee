"""The step's matrix products, by the library that is faster where they run.

On a CPU torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's processors alone; oneDNN, which torch
brings for its convolutions, uses it on all. On an AMD EPYC with AVX-512 its products took 0.43 of the time; on an
Intel Xeon, and an EPYC with AVX2, a step took 1.1 times as long with them (docs/decisions/memory-efficient-layers.md).
Which is taken depends on the processor alone, never on a race, whose outcome could change the bits of a resumed run.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

Steps = tuple[Any, Any, Any]
"""A convolution's stride, padding and dilation."""
POINTS: Steps = ((1, 1), (0, 0), (1, 1))
"""Options of a convolution of single pixels, whose kernel is one too."""
THERE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""True if this processor and this build of torch have oneDNN's products."""
NAME = str(torch.cpu.get_capabilities().get("cpu_name", "")) if hasattr(torch.cpu, "get_capabilities") else ""
"""Name of the processor; empty if torch cannot tell."""
ONEDNN = THERE and NAME.startswith("AMD")
"""True if oneDNN's products are the faster ones."""

ENOUGH = 1_000_000
"""Multiplications from which on it is worth the ten microseconds that a call of it takes more."""


def uses_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether oneDNN computes ``x`` times ``weight`` (out, in); ``x`` is (..., in), or images (B, in, H, W)."""
    suits = ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if isinstance(x, FakeTensor):  # Which have sizes alone: oneDNN's convolution would look for numbers.
        return False
    return suits and x.numel() * weight.shape[0] >= ENOUGH


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (rows, in) times the transpose of ``weight`` (out, in), and ``bias``: (rows, out). No gradient flows."""
    if uses_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, steps: Steps, groups: int = 1
) -> torch.Tensor:
    """A convolution. No gradient flows. Of kernels of one pixel torch makes MKL's products too."""
    if groups == 1 and _is_pointwise(weight, steps) and uses_onednn(x, weight):
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)  # type: ignore[no-any-return]
    return functional.conv2d(x, weight, bias, *steps, groups)


def conv_input(
    shape: torch.Size, weight: torch.Tensor, gradient: torch.Tensor, steps: Steps, groups: int = 1
) -> torch.Tensor:
    """The gradient of a convolution's input of that ``shape``, of its output's ``gradient``."""
    if groups == 1 and _is_pointwise(weight, steps):
        return conv(gradient, weight.transpose(0, 1).contiguous(), None, steps)
    # Its size alone counts: one number stands for all where that does (cuDNN); oneDNN would write it out in full first.
    unread = gradient.new_empty(shape) if gradient.device.type == "cpu" else gradient.new_empty(1).expand(shape)
    wanted = (True, False, False)
    of_input, *_ = torch.ops.aten.convolution_backward(
        gradient, unread, weight, None, *steps, False, (0, 0), groups, wanted
    )
    return of_input  # type: ignore[no-any-return]


def _is_pointwise(weight: torch.Tensor, steps: Steps) -> bool:
    return tuple(weight.shape[2:]) == (1, 1) and steps == POINTS
