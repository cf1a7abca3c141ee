"""The forward process: how much of the picture is left after each timestep."""

from collections.abc import Mapping
from typing import Any

import torch

ZERO_SNR = "rescale_betas_zero_snr"
"""In a scheduler's config: whether the schedule ends in noise alone."""


def alphas_cumprod(config: Mapping[str, Any]) -> torch.Tensor:
    """ᾱ_t for every timestep, (T,) float64, of a scheduler configuration as diffusers keeps it.

    Raises ValueError for a beta schedule that is not known. DDPM, arXiv:2006.11239, section 2;
    ``scaled_linear`` is latent diffusion's, arXiv:2112.10752.
    """
    steps = config["num_train_timesteps"]
    start, end = config["beta_start"], config["beta_end"]
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ValueError(f"beta schedule {config['beta_schedule']!r} is not known")
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    return _ending_in_noise(alpha_bar) if config.get(ZERO_SNR) else alpha_bar


def _ending_in_noise(alpha_bar: torch.Tensor) -> torch.Tensor:
    """√ᾱ shifted and scaled so that its first value stays and its last is 0.

    Lin et al., arXiv:2305.08891, algorithm 1.
    """
    signal = alpha_bar.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


class NoiseSchedule:
    """√ᾱ and √(1-ᾱ) for a batch of timesteps, and the signal-to-noise ratio."""

    def __init__(self, config: Mapping[str, Any], device: torch.device | str = "cpu"):
        alpha_bar = alphas_cumprod(config)
        self.num_train_timesteps = len(alpha_bar)
        self.signal = alpha_bar.sqrt().float().to(device)
        self.noise = (1 - alpha_bar).sqrt().float().to(device)
        self.snr = (alpha_bar / (1 - alpha_bar)).float().to(device)
        """ᾱ / (1 - ᾱ), (T,)."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε; all (B, C, H, W), ``timesteps`` (B,). DDPM eq. 4."""
        return self._at(self.signal, timesteps) * latents + self._at(self.noise, timesteps) * noise

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = √ᾱ_t ε - √(1-ᾱ_t) x_0. Salimans & Ho, arXiv:2202.00512, section 4."""
        return self._at(self.signal, timesteps) * noise - self._at(self.noise, timesteps) * latents

    @staticmethod
    def _at(values: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return values[timesteps][:, None, None, None]
