"""Floating-point operations counted as they are dispatched, and how fast the machine multiplies matrices."""

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from sdlora.training import cpu_matmul

_ATEN = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * weight[0]


def _convolution(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


ON_CPU = {
    torch.ops.mkldnn._linear_pointwise: _linear,
    _ATEN.mkldnn_convolution: _convolution,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""oneDNN's products (``sdlora.training.cpu_matmul``) and the CPU's fused attention: torch's own table leaves them
out.
"""


def counter() -> FlopCounterMode:
    """A context that counts matrix products, convolutions and attention, forwards and backwards."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)


def synchronize(device: torch.device) -> float:
    """The time in seconds once ``device`` has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, large enough for ``device``: what a step could reach were it nothing else.

    Of the libraries that the step uses, the faster one.
    """
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for multiply in (torch.matmul, cpu_matmul.linear):
        begun = synchronize(device)
        multiply(a, b)
        seconds.append(synchronize(device) - begun)
    return 2 * size**3 / min(seconds)
