"""The training step: encode, noise, predict, target, weight, mean."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from sdlora.data.batches import Batch
from sdlora.diffusion.loss import WEIGHTS, min_snr_weight, squared_error, target
from sdlora.diffusion.noise import sample_noise_and_timesteps
from sdlora.diffusion.schedule import NoiseSchedule
from sdlora.families.base import Conditioning, Family, to_device_async
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
    bare: AbstractContextManager[None] | None = None,
) -> torch.Tensor:
    """The loss of one micro-batch, a scalar in float32 with its graph.

    ``batch`` holds the instance examples first and the class examples behind them; both go through
    one forward pass, and the class part's mean is weighted by ``prior_weight`` (prior preservation,
    DreamBooth, arXiv:2208.12242, eq. 2). ``number`` counts micro-batches over the whole run: with the
    examples' places in the global batch it decides noise and timesteps. With ``bare``, a context without the adapter,
    the class part's target is what the base itself predicts.
    """
    device = family.device
    noise, spread, timesteps = sample_noise_and_timesteps(
        batch.mean.shape[1:], schedule.num_train_timesteps, seed, number, batch.positions, loss.noise_offset,
        loss.timesteps, (loss.min_timestep, loss.max_timestep),
    )  # fmt: skip
    noise, timesteps = to_device_async(noise, device), to_device_async(timesteps, device)
    latents = to_device_async(batch.mean + batch.std * spread, device)

    noisy = schedule.add_noise(latents, noise, timesteps)
    prediction = family.predict(noisy, timesteps, encode(batch.captions), batch.size_and_crop)
    wanted = target(schedule, family.prediction_type, latents, noise, timesteps)
    if bare is not None and len(batch) > batch.instances:
        with torch.no_grad(), bare:
            base = _predict_classes(family, noisy, timesteps, batch, encode)
        wanted = torch.cat([wanted[: batch.instances], base.to(wanted.dtype)])
    error = squared_error(prediction, wanted, None if batch.mask is None else to_device_async(batch.mask, device))
    if loss.min_snr_gamma is not None:
        error = error * min_snr_weight(schedule.snr[timesteps], loss.min_snr_gamma, family.prediction_type)
    elif loss.weighting != "uniform":
        error = error * WEIGHTS[loss.weighting](schedule.snr[timesteps], family.prediction_type)

    instance, preserved = error[: batch.instances], error[batch.instances :]
    return instance.mean() + (prior_weight * preserved.mean() if len(preserved) else 0.0)


def _predict_classes(
    family: Family,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    batch: Batch,
    encode: Callable[[list[str]], Conditioning],
) -> torch.Tensor:
    """The prediction for the class examples alone."""
    own = slice(batch.instances, None)
    framing = None if batch.size_and_crop is None else batch.size_and_crop[own]
    return family.predict(noisy[own], timesteps[own], encode(batch.captions[own]), framing)
