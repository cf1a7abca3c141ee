"""Randomness without state: every draw is a function of the seed, the micro-batch and the example's place.

So a resumed run repeats an uninterrupted one bit for bit, and N processes draw what one would.
"""

from collections.abc import Sequence

import torch

from sdlora.seeds import derive


def draw(
    shape: Sequence[int],
    num_train_timesteps: int,
    seed: int,
    number: int,
    places: Sequence[int],
    noise_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise (B, C, H, W), latent deviations (B, C, H, W) and timesteps (B,) int64 for micro-batch ``number``.

    ``shape`` is (C, H, W); ``places`` are the examples' places in the global micro-batch.
    ``noise_offset`` adds a constant to each channel (Guttenberg 2023, "Diffusion with offset
    noise"), which lets a model learn darker and brighter pictures.
    """
    noise, spread, timesteps = [], [], []
    for place in places:
        generator = torch.Generator().manual_seed(derive(seed, "noise", number, place))
        timesteps.append(torch.randint(num_train_timesteps, (1,), generator=generator))
        spread.append(torch.randn(*shape, generator=generator))
        offset = torch.randn(shape[0], 1, 1, generator=generator) * noise_offset
        noise.append(torch.randn(*shape, generator=generator) + offset)
    return torch.stack(noise), torch.stack(spread), torch.cat(timesteps)
