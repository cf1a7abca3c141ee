"""The training step: encode, noise, predict, target, weight, mean."""

from collections.abc import Callable

import torch

from sdlora.data.batches import Batch
from sdlora.diffusion.noise import draw
from sdlora.diffusion.objective import squared_error, target
from sdlora.diffusion.schedule import NoiseSchedule
from sdlora.diffusion.weighting import min_snr_weight
from sdlora.families.base import Conditioning, Family
from sdlora.training.settings import Loss


def training_step(
    family: Family,
    schedule: NoiseSchedule,
    batch: Batch,
    encode: Callable[[list[str]], Conditioning],
    loss: Loss,
    prior_weight: float,
    seed: int,
    number: int,
) -> torch.Tensor:
    """The loss of one micro-batch, a scalar in float32 with its graph.

    ``batch`` holds the instance examples first and the class examples behind them; both go through
    one forward pass, and the class part's mean is weighted by ``prior_weight`` (prior preservation,
    DreamBooth, arXiv:2208.12242, eq. 2). ``number`` counts micro-batches over the whole run: with the
    examples' places in the global batch it decides noise and timesteps.
    """
    device = family.device
    noise, spread, timesteps = draw(
        batch.mean.shape[1:], schedule.num_train_timesteps, seed, number, batch.places, loss.noise_offset
    )
    noise, timesteps = noise.to(device), timesteps.to(device)
    latents = (batch.mean + batch.std * spread).to(device)

    noisy = schedule.add_noise(latents, noise, timesteps)
    prediction = family.predict(noisy, timesteps, encode(batch.captions), batch.framing)
    wanted = target(schedule, family.prediction_type, latents, noise, timesteps)
    error = squared_error(prediction, wanted, None if batch.mask is None else batch.mask.to(device))
    if loss.min_snr_gamma is not None:
        error = error * min_snr_weight(schedule.snr[timesteps], loss.min_snr_gamma, family.prediction_type)

    instance, preserved = error[: batch.instances], error[batch.instances :]
    return instance.mean() + (prior_weight * preserved.mean() if len(preserved) else 0.0)
