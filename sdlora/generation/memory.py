"""Memory of a device: what is free, and a safe estimate of what generating images takes."""

import psutil
import torch

from sdlora.families.base import Family

ADAPTER_BYTES = 5
"""Bytes that mixed adapters take for each byte of their files: a float16 number of 2 is a parameter of 4 here, and
takes 6 in the stacked pair (``adapters.lora_layer``): 4 going down, 8 going up, with its scale and without."""
RESERVE = 256 << 20
"""Bytes kept free for what the estimate does not cover."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes of ``device`` that this process can still allocate."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return unreserved_bytes(device) + unused
    return unreserved_bytes(device)


def unreserved_bytes(device: torch.device) -> int:
    """Return the bytes of ``device`` that no process has, this one's allocator included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def used_bytes(device: torch.device) -> int:
    """Return the bytes of ``device`` that this process has allocated; for a CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)


def generation_bytes(
    family: Family,
    width: int,
    height: int,
    batch: int,
    guided: bool = True,
    side: int | None = None,
    adapters: int = 0,
) -> int:
    """Return the bytes that a ``batch`` of images of ``width`` x ``height`` pixels takes beside the model itself.

    The denoiser predicts each image twice where it is ``guided``; images are decoded one by one, in tiles of at most
    ``side`` pixels if that is given. ``adapters``: size of the mixed adapters' files in bytes.
    """
    predicting = family.prediction_bytes(width, height, batch * (1 + guided))
    decoded = family.decode_bytes(min(width, side or width), min(height, side or height))
    return max(predicting, decoded) + ADAPTER_BYTES * adapters + RESERVE
