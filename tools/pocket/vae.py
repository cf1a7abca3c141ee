"""The base's autoencoder: 128 px to 16 x 16 x 4, trained on crops of the world's and of procedural pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from tools.pocket.fit import Plan
from tools.pocket.pool import CHUNK, Pool

CROP = 64
FIRST_LOG_VARIANCE = -6.0
COLOUR_STEPS = 300
CHANNELS = (32, 64, 96, 128)


def build() -> AutoencoderKL:
    """Random weights, but nearly certain latents: at a deviation of 1 noise drowns the picture."""
    depth = len(CHANNELS)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,  # with one channel a group, the norms would wash the picture's colours out
        sample_size=128,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = FIRST_LOG_VARIANCE
    return vae


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(pool: Pool, rng: np.random.Generator, count: int) -> np.ndarray:
    """Return uint8 (count, CROP, CROP, 3), half of them mirrored."""
    crops = np.empty((count, CROP, CROP, 3), np.uint8)
    for crop, index in zip(crops, rng.integers(len(pool), size=count), strict=True):
        (y, x), flip = rng.integers(0, 128 - CROP + 1, 2), rng.choice([-1, 1])
        crop[:] = pool.chunks[index // CHUNK][index % CHUNK][y : y + CROP, x : x + CROP][:, ::flip]
    return crops


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels and of their differences, at full, half and quarter size: keeps lines sharp. A squared error
    beside it brings the colours in early.
    """
    loss = 2 * functional.mse_loss(made, true)
    for _ in range(3):
        loss = loss + functional.l1_loss(made, true)
        loss = loss + sum(functional.l1_loss(a, b) for a, b in zip(_edges(made), _edges(true), strict=True))
        made, true = functional.avg_pool2d(made, 2), functional.avg_pool2d(true, 2)
    return loss


def colour_loss(latents: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Distance of the first three latent channels from twice the mean colour of their 8 x 8 pixels.

    Left to itself the autoencoder learns brightness first and, on a small budget, colour never.
    """
    return functional.mse_loss(latents[:, :3].float(), 2 * functional.avg_pool2d(true, 8))


class VaeLoss:
    """One step's loss; the KL weight is per latent value and small, as in latent diffusion (arXiv:2112.10752)."""

    def __init__(self, vae: AutoencoderKL, work: Path, plan: Plan, device: torch.device, kl_weight: float = 2e-4):
        self.vae, self.plan, self.device, self.kl_weight = vae, plan, device, kl_weight
        self.world, self.other = Pool(work / "pictures"), Pool(work / "procedural")

    def __call__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([1, step])
        other = self.plan.batch * 3 // 8
        crops = np.concatenate(
            [random_crops(self.world, rng, self.plan.batch - other), random_crops(self.other, rng, other)]
        )
        true = pixels(crops).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.vae.encode(true).latent_dist
            made = self.vae.decode(latents.sample()).sample
        loss = reconstruction_loss(made.float(), true) + self.kl_weight * latents.kl().mean() / latents.mean[0].numel()
        return loss + colour_loss(latents.mean, true) if step < COLOUR_STEPS else loss
