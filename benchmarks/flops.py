"""Floating-point operations counted as they are dispatched, and how fast the machine multiplies matrices."""

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


ON_CPU = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's fused attention, which torch's own table leaves out."""


def counter() -> FlopCounterMode:
    """A context that counts matrix products, convolutions and attention, forwards and backwards."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)


def synchronize(device: torch.device) -> float:
    """The time in seconds once ``device`` has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, large enough for ``device``: what a step could reach were it nothing else."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    begun = synchronize(device)
    a @ b
    return 2 * size**3 / (synchronize(device) - begun)
