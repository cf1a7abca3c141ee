"""Noise process of a base model: the way from clean latents to noise that it was trained on.

Randomness has no state: every random number is a function of the seed, the micro-batch and the example's position. A
resumed run therefore repeats an uninterrupted one bit for bit, and N processes together sample what one would.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch

from sdlora.seeds import derive, uniform

POSITION_STRIDE, BATCH_STRIDE = (5**0.5 - 1) / 2, 3**0.5 - 1
"""Steps of an even time along the unit interval, from position to position and from micro-batch to micro-batch.

Both are badly approximated by fractions, so that neighbours keep their distance whatever the batch size.
"""


class NoiseSample(NamedTuple):
    """Random numbers of one micro-batch."""

    noise: torch.Tensor
    """(B, C, H, W) normal, plus the noise offset."""
    deviation: torch.Tensor
    """(B, C, H, W) standard normal: where in the VAE's posterior the latents are."""
    times: torch.Tensor
    """(B,), as the denoiser reads them."""


class NoiseProcess(ABC):
    """Times, noise, target and weights of a family's training objective; all that the training step knows of it.

    Latents and noise are (B, C, H, W); times are (B,) and what the denoiser is given as timesteps, integers or not. A
    new process is a subclass that its family returns as ``Family.process``.
    """

    prediction_type: str
    """Prediction type of the denoiser, as diffusers' schedulers call it."""
    num_train_timesteps: int
    """Number of timesteps of training; times lie below it, or at it where they are continuous."""
    title: str = "this model"
    """Name in errors of a model that has this process."""

    def to(self, device: torch.device | str) -> Self:
        """Return the process with its tensors on ``device``."""
        return self

    @abstractmethod
    def sample_time(
        self, sampling: str, span: tuple[int, int | None], seed: int, number: int, position: int,
        generator: torch.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Sample one time, (1,), between the ends of ``span`` (None: the last); ``sample`` explains the arguments."""

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents at ``times``."""

    @abstractmethod
    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return what the denoiser shall predict, of the latents' shape."""

    @abstractmethod
    def weight(
        self, times: torch.Tensor, weighting: str = "uniform", min_snr_gamma: float | None = None
    ) -> torch.Tensor:
        """Return the weight of each example's loss, (B,) float32."""

    @abstractmethod
    def scheduler(self, kind: str, options: Mapping[str, Any]) -> Any:
        """Return diffusers' scheduler of class ``kind`` with ``options``, or what stands in for it."""

    def supports_scheduler(self, kind: str) -> bool:
        """Return whether diffusers' scheduler of class ``kind``, or what stands in for it, can follow this process."""
        return True

    def check_weighting(self, weighting: str, min_snr_gamma: float | None) -> None:  # noqa: B027
        """Raise ConfigError for a weighting that this process does not define; by default it defines all."""

    def sample(
        self,
        shape: Sequence[int],
        seed: int,
        number: int,
        positions: Sequence[int],
        noise_offset: float = 0.0,
        sampling: str = "uniform",
        span: tuple[int, int | None] = (0, None),
    ) -> NoiseSample:
        """Sample the noise, the latents' deviations and the times of micro-batch ``number``.

        ``shape`` is (C, H, W); ``positions`` are the examples' positions in the global micro-batch. ``noise_offset``
        adds a constant to each channel (Guttenberg 2023, "Diffusion with offset noise"), which lets a model learn
        darker and brighter images. ``sampling`` is ``uniform``, or a distribution of ``sample_fraction``; ``span``
        holds the first and the last time that are sampled (None: the model's last).
        """
        rows = []
        for position in positions:
            generator = torch.Generator().manual_seed(derive(seed, "noise", number, position))
            time = self.sample_time(sampling, span, seed, number, position, generator)
            deviation = torch.randn(*shape, generator=generator)
            offset = torch.randn(shape[0], 1, 1, generator=generator) * noise_offset
            rows.append((torch.randn(*shape, generator=generator) + offset, deviation, time))
        noise, deviations, times = zip(*rows, strict=True)
        return NoiseSample(torch.stack(noise), torch.stack(deviations), torch.cat(times))


def sample_fraction(sampling: str, seed: int, number: int, position: int, generator: torch.Generator) -> torch.Tensor:
    """Sample a time as a fraction of its span, (1,) float64 in [0, 1).

    ``even`` is a Kronecker sequence over positions and micro-batches, shifted by ``seed``: each time is as frequent as
    another, and no batch has early ones alone. ``logit-normal`` has m = 0 and s = 1 (SD 3, arXiv:2403.03206, section
    3.1).
    """
    if sampling == "even":
        even = (uniform(seed, "timesteps") + position * POSITION_STRIDE + number * BATCH_STRIDE) % 1.0
        return torch.tensor([even], dtype=torch.float64)
    assert sampling == "logit-normal", sampling
    return torch.randn(1, generator=generator, dtype=torch.float64).sigmoid()
