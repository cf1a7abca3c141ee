"""The autoencoder's decoder alone, trained to draw any look's lines and grain from the latents as they are.

A decoder that is trained on distances of pixels alone draws the mean of all that a latent may stand for: soft. A critic
that sees images beside their latents (arXiv:1406.2661, 1611.07004) asks for one of them, as sharp as true drawings are.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from tools.pocket.fit import Plan
from tools.pocket.pool import Pool
from tools.pocket.vae import pixels, random_crops, reconstruction_loss

SHARES = {"looks": 5 / 8, "pictures": 2 / 8, "procedural": 1 / 8}
"""Shares of the pools in a batch."""
ADVERSARIAL_WEIGHT = 0.1
MATCHING_WEIGHT = 1.0
"""Weight of the distance of the critic's features, a perceptual loss that is learnt (arXiv:1711.11585)."""
CRITIC_BEGINS = 200
"""Steps that the critic learns alone, before the decoder heeds it."""


class Critic(nn.Module):
    """Judges patches of an image (B, 3, 8H, 8W) that is to show latents (B, 4, H, W): 1 for true ones, 0 for made."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.LeakyReLU(0.2))
        self.coarser = nn.ModuleList(_halved(n * width, (n + 1) * width) for n in (1, 2, 3))
        self.latents = nn.Conv2d(4, 4 * width, 1)
        self.judged = nn.ModuleList(nn.Conv2d(n * width, 1, 3, 1, 1) for n in (1, 2, 3))
        self.last = nn.Sequential(nn.Conv2d(4 * width, 4 * width, 3, 1, 1), nn.LeakyReLU(0.2))
        self.whole = nn.Conv2d(4 * width, 1, 1)

    def forward(self, image: torch.Tensor, latents: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return what is thought of the patches at each size, and the features, finest first."""
        features = [self.fine(image)]
        for layer in self.coarser:
            features.append(layer(features[-1]))
        judged = [head(feature) for head, feature in zip(self.judged, features, strict=False)]
        return [*judged, self.whole(self.last(features[-1] + self.latents(latents)))], features


def _halved(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2))


class DecoderAndCritic(nn.Module):
    """Both networks; the encoder is locked, so that latents, and what was trained on them, stay as they are."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae, self.critic = vae, Critic()
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)


def _squared(judged: list[torch.Tensor], wanted: float) -> torch.Tensor:
    """Least squares (arXiv:1611.04076), the mean over sizes."""
    return sum((each.float() - wanted).square().mean() for each in judged) / len(judged)


class DecoderLoss:
    """One step's loss of both: what the critic learns of images that are only read, and what the decoder is told."""

    def __init__(self, both: DecoderAndCritic, work: Path, plan: Plan, device: torch.device):
        self.both, self.plan, self.device = both, plan, device
        self.pools = {name: Pool(work / name) for name in SHARES}

    def __call__(self, step: int) -> torch.Tensor:
        rng, vae, critic = np.random.default_rng([4, step]), self.both.vae, self.both.critic
        crops = [random_crops(pool, rng, round(self.plan.batch * SHARES[name])) for name, pool in self.pools.items()]
        true = pixels(np.concatenate(crops)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(true).latent_dist.mode()
            made = vae.decode(latents).sample.float()
            of_true, features = critic(true, latents)
            of_made, _ = critic(made.detach(), latents)
            locked = {name: weight.detach() for name, weight in critic.named_parameters()}
            wished, similar = functional_call(critic, locked, (made, latents))
        matching = sum(
            functional.l1_loss(a.float(), b.detach().float()) for a, b in zip(similar, features, strict=True)
        ) / len(features)
        learnt = (_squared(of_true, 1.0) + _squared(of_made, 0.0)) / 2
        heeded = 1.0 if step >= CRITIC_BEGINS else 0.0
        told = ADVERSARIAL_WEIGHT * _squared(wished, 1.0) + MATCHING_WEIGHT * matching
        return reconstruction_loss(made, true) + heeded * told + learnt
