"""What this process holds of a device's memory, and whether pictures fit into what is left: erring on the safe side."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sdlora.families.base import Family

MIXED = 5
"""Bytes that mixed adapters take for one of their files': a number that float16 keeps in 2 is a parameter of 4 here,
and takes 6 in the stacked pair (``adapters.mixing``): 4 going down, 8 going up, with its scale and without."""
RESERVE = 256 << 20
"""Bytes left alone, for what no estimate knows of."""


def free_bytes(device: torch.device) -> int:
    """Bytes that ``device`` has left for this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    return psutil.virtual_memory().available


def used_bytes(device: torch.device) -> int:
    """Bytes that this process has of ``device``; of a CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    import psutil

    return int(psutil.Process().memory_info().rss)


def generation_bytes(
    family: "Family",
    width: int,
    height: int,
    batch: int,
    guided: bool = True,
    side: int | None = None,
    adapters: int = 0,
) -> int:
    """Bytes that drawing ``batch`` pictures of ``width`` x ``height`` pixels at once takes beside the model itself.

    The denoiser predicts each image twice where it is ``guided``; pictures are decoded one by one, in tiles of at most
    ``side`` pixels if that is given. ``adapters``: bytes of the files that are mixed.
    """
    predicting = family.prediction_bytes(width, height, batch * (1 + guided))
    decoded = family.decode_bytes(min(width, side or width), min(height, side or height))
    return max(predicting, decoded) + MIXED * adapters + RESERVE
