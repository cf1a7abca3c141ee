"""Randomness without state: every draw is a function of the seed, the micro-batch and the example's place.

So a resumed run repeats an uninterrupted one bit for bit, and N processes draw what one would.
"""

from collections.abc import Sequence

import torch

from sdlora.seeds import derive, uniform

TURN, SIDEWAYS = (5**0.5 - 1) / 2, 3**0.5 - 1
"""By how much of a whole an even timestep moves on from place to place, and from micro-batch to micro-batch.

Both are badly approximated by fractions, so that neighbours keep their distance whatever the batch size.
"""


def sample_noise_and_timesteps(
    shape: Sequence[int],
    num_train_timesteps: int,
    seed: int,
    number: int,
    places: Sequence[int],
    noise_offset: float = 0.0,
    timesteps: str = "uniform",
    span: tuple[int, int | None] = (0, None),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise (B, C, H, W), latent deviations (B, C, H, W) and timesteps (B,) int64 for micro-batch ``number``.

    ``shape`` is (C, H, W); ``places`` are the examples' places in the global micro-batch. ``noise_offset`` adds a
    constant to each channel (Guttenberg 2023, "Diffusion with offset noise"), which lets a model learn darker and
    brighter pictures. ``timesteps`` is a way of ``sample_timestep``, ``span`` the first and last that are drawn (None:
    the model's last).
    """
    noise, spread, drawn = [], [], []
    last = num_train_timesteps - 1 if span[1] is None else min(span[1], num_train_timesteps - 1)
    first = min(span[0], last)
    for place in places:
        generator = torch.Generator().manual_seed(derive(seed, "noise", number, place))
        drawn.append(sample_timestep(timesteps, first, last, seed, number, place, generator))
        spread.append(torch.randn(*shape, generator=generator))
        offset = torch.randn(shape[0], 1, 1, generator=generator) * noise_offset
        noise.append(torch.randn(*shape, generator=generator) + offset)
    return torch.stack(noise), torch.stack(spread), torch.cat(drawn)


def sample_timestep(
    sampling: str, first: int, last: int, seed: int, number: int, place: int, generator: torch.Generator
) -> torch.Tensor:
    """One timestep of ``first`` to ``last``, (1,) int64.

    ``even`` is a Kronecker sequence over places and micro-batches, shifted by ``seed``: each timestep comes as often
    as another, and no batch draws only early ones. ``logit-normal``: SD 3, arXiv:2403.03206, section 3.1, with m = 0
    and s = 1.
    """
    if sampling == "uniform":
        return torch.randint(first, last + 1, (1,), generator=generator)
    if sampling == "even":
        even = (uniform(seed, "timesteps") + place * TURN + number * SIDEWAYS) % 1.0
        share = torch.tensor([even], dtype=torch.float64)
    else:
        share = torch.randn(1, generator=generator, dtype=torch.float64).sigmoid()
    return (first + share * (last + 1 - first)).long().clamp(max=last)
