"""What this process holds of a device's memory, and whether pictures fit into what is left: erring on the safe side."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sdlora.families.base import Family

UNET_TENSORS = 48
"""Tensors of the UNet's first width, at the size of the latents, that exist at once while it predicts: its inputs to
the way up, a transformer block's hidden layer (8 widths), attention, and the convolutions' workspace."""
VAE_TENSORS = 10
"""The same for the decoder: tensors of its second width at the size of the picture, in float32."""
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


def tile_size(family: "Family") -> int:
    """The side in pixels of the largest picture that the VAE decodes as one tile."""
    vae: Any = family.vae
    return int(vae.tile_latent_min_size) * family.latent_factor


def decode_bytes(family: "Family", width: int, height: int) -> int:
    """Bytes that decoding a picture of ``width`` x ``height`` pixels takes, or a tile of that size."""
    vae: Any = family.vae
    widths = vae.config.block_out_channels
    return int(width * height * VAE_TENSORS * widths[min(1, len(widths) - 1)] * torch.float32.itemsize)


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

    The UNet sees every picture twice where it is ``guided``; pictures are decoded one by one, in tiles of at most
    ``side`` pixels if that is given. ``adapters``: bytes of the files that are mixed.
    """
    unet: Any = family.models["unet"]
    latents = (width // family.latent_factor) * (height // family.latent_factor)
    predicting = latents * batch * (1 + guided) * UNET_TENSORS * unet.config.block_out_channels[0] * unet.dtype.itemsize
    decoded = decode_bytes(family, min(width, side or width), min(height, side or height))
    return max(predicting, decoded) + MIXED * adapters + RESERVE
