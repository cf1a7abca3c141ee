"""The training step: encode, sample, noise, predict, target, weight, mean."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from sdlora.data.batches import Batch
from sdlora.diffusion.process import NoiseProcess
from sdlora.families.base import Conditioning, Family, to_device_async
from sdlora.training.settings import Loss

EncodeCaptions = Callable[[list[str], int], Conditioning]
"""Function from captions to their conditioning (B, chunks L, D), all read as that many chunks."""


def training_step(
    family: Family,
    process: NoiseProcess,
    batch: Batch,
    encode: EncodeCaptions,
    loss: Loss,
    prior_weight: float,
    seed: int,
    number: int,
    disabled_adapters: AbstractContextManager[None] | None = None,
    outside_masks: float = 0.0,
) -> torch.Tensor:
    """Return the loss of one micro-batch, a scalar in float32 with its graph.

    ``process`` is the family's, on its device. ``batch`` holds the instance examples first and the class examples
    behind them; both go through one forward pass, and the class part's mean is weighted by ``prior_weight`` (prior
    preservation, DreamBooth, arXiv:2208.12242, eq. 2). A batch of several concepts has ``weights`` of its own for both:
    they take the place of ``prior_weight``, and an instance without a class example adds nothing there. ``number``
    counts micro-batches over the whole run: with the examples' positions in the global batch it decides noise and
    times. ``disabled_adapters`` is a context without the adapter: in it the base predicts the target of the examples
    that the batch says have their target from the base. Outside the masks it is the target of all, weighted by
    ``outside_masks``.
    """
    device = family.device
    noise, deviation, times = process.sample(
        batch.mean.shape[1:], seed, number, batch.positions, loss.noise_offset, loss.timesteps,
        (loss.min_timestep, loss.max_timestep),
    )  # fmt: skip
    noise, times = to_device_async(noise, device), to_device_async(times, device)
    latents = to_device_async(batch.mean + batch.std * deviation, device)

    noisy = process.add_noise(latents, noise, times)
    prediction = family.predict(noisy, times, encode(batch.captions, batch.chunks), batch.size_and_crop)
    target = process.target(latents, noise, times)
    if disabled_adapters is not None and batch.from_base:
        with torch.no_grad(), disabled_adapters:
            base = _predict_rows(family, noisy, times, batch, encode, batch.from_base)
        target = target.index_copy(0, to_device_async(torch.tensor(batch.from_base), device), base.to(target.dtype))
    mask = None if batch.mask is None else to_device_async(batch.mask, device)
    error = squared_error(prediction, target, mask)
    if disabled_adapters is not None and mask is not None and outside_masks:
        with torch.no_grad(), disabled_adapters:
            base = _predict_rows(family, noisy, times, batch, encode, range(len(batch)))
        error = error + outside_masks * squared_error(prediction, base, 1 - mask)
    error = error * process.weight(times, loss.weighting, loss.min_snr_gamma)

    if batch.weights is not None:
        return (error * to_device_async(batch.weights, device)).sum() / batch.instances
    instance, preserved = error[: batch.instances], error[batch.instances :]
    return instance.mean() + (prior_weight * preserved.mean() if len(preserved) else 0.0)


def _predict_rows(
    family: Family,
    noisy: torch.Tensor,
    times: torch.Tensor,
    batch: Batch,
    encode: EncodeCaptions,
    numbers: Sequence[int],
) -> torch.Tensor:
    """Predict the examples of these ``numbers`` alone."""
    rows = torch.tensor(numbers)
    size_and_crop = None if batch.size_and_crop is None else batch.size_and_crop[rows]
    text = encode([batch.captions[number] for number in numbers], batch.chunks)
    rows = to_device_async(rows, family.device)
    return family.predict(noisy[rows], times[rows], text, size_and_crop)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared error of each example, (B,) float32; ``mask`` (B, 1, H, W) weights positions.

    float32: the squares overflow in float16. With a mask the mean is taken over its weight, so that a small subject
    counts as much as a large one.
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    return (error * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3)).clamp_min(1e-6)
