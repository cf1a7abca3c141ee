"""Diffusion over discrete betas (DDPM, arXiv:2006.11239): the noise process of Stable Diffusion 1, 2 and XL."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch

from sdlora.diffusion import ZERO_SNR
from sdlora.diffusion.process import NoiseProcess, sample_fraction
from sdlora.errors import ModelError

DEFAULTED = "_use_default_values"
"""Entry of a scheduler's config: diffusers' list of the entries that nobody has given."""


class DDPMProcess(NoiseProcess):
    """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε over integer timesteps; the target is the noise ε or the velocity."""

    def __init__(self, config: Mapping[str, Any]):
        """Read a scheduler configuration as diffusers keeps it.

        Raises ValueError for an unknown beta schedule or prediction type.
        """
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction type {self.prediction_type!r} is unknown")
        self._config = dict(config)
        if config.get(ZERO_SNR):
            self.title = "a zero-terminal-SNR model"
        alpha_bar = alphas_cumprod(config)
        self.num_train_timesteps = len(alpha_bar)
        self.signal_scale = alpha_bar.sqrt().float()
        """√ᾱ, (T,)."""
        self.noise_scale = (1 - alpha_bar).sqrt().float()
        """√(1-ᾱ), (T,)."""
        self.snr = (alpha_bar / (1 - alpha_bar)).float()
        """Signal-to-noise ratio ᾱ / (1 - ᾱ), (T,)."""

    def to(self, device: torch.device | str) -> Self:
        moved = copy.copy(self)
        moved.signal_scale, moved.noise_scale = self.signal_scale.to(device), self.noise_scale.to(device)
        moved.snr = self.snr.to(device)
        return moved

    def sample_time(
        self, sampling: str, span: tuple[int, int | None], seed: int, number: int, position: int,
        generator: torch.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Sample one timestep, (1,) int64, of those from ``span``'s first to its last."""
        end = self.num_train_timesteps - 1
        last = end if span[1] is None else min(span[1], end)
        first = min(span[0], last)
        if sampling == "uniform":
            return torch.randint(first, last + 1, (1,), generator=generator)
        fraction = sample_fraction(sampling, seed, number, position, generator)
        return (first + fraction * (last + 1 - first)).long().clamp(max=last)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (DDPM, eq. 4)."""
        return _at(self.signal_scale, times) * latents + _at(self.noise_scale, times) * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """ε, or v = √ᾱ_t ε - √(1-ᾱ_t) x_0 (Salimans & Ho, arXiv:2202.00512, section 4)."""
        if self.prediction_type == "epsilon":
            return noise
        return _at(self.signal_scale, times) * noise - _at(self.noise_scale, times) * latents

    def weight(
        self, times: torch.Tensor, weighting: str = "uniform", min_snr_gamma: float | None = None
    ) -> torch.Tensor:
        if min_snr_gamma is not None:
            return min_snr_weight(self.snr[times], min_snr_gamma, self.prediction_type)
        if weighting == "uniform":
            return torch.ones(len(times), device=times.device)
        return WEIGHTS[weighting](self.snr[times], self.prediction_type)

    def scheduler(self, kind: str, options: Mapping[str, Any]) -> Any:
        """Return diffusers' scheduler with these betas and this target.

        If they end in noise alone, its steps are taken from the end: others leave the first step out (arXiv:2305.08891,
        section 3.3).
        """
        import diffusers

        trailing = {"timestep_spacing": "trailing"} if self._config.get(ZERO_SNR) else {}
        return getattr(diffusers, kind).from_config(self._config, **{**options, **trailing})

    def supports_scheduler(self, kind: str) -> bool:
        """Return whether the scheduler can begin at noise alone, where these betas end in it."""
        import diffusers

        return not self._config.get(ZERO_SNR) or ZERO_SNR in inspect.signature(getattr(diffusers, kind)).parameters


def _at(values: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return values[times][:, None, None, None]


def override_schedule(config: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's ``config`` with the entries of ``schedule``.

    Those leave the list of entries that nobody has given, which diffusers drops when it makes another scheduler.
    """
    defaulted = [name for name in config.get(DEFAULTED, ()) if name not in schedule]
    return {**config, **schedule, DEFAULTED: defaulted}


def require_known_schedule(source: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError for noise schedules and targets that training would silently get wrong."""
    served = {
        "prediction_type": ("epsilon", "v_prediction"),
        "beta_schedule": ("linear", "scaled_linear"),
    }
    for name, values in served.items():
        if config.get(name, values[0]) not in values:
            raise ModelError(f"{source}: its scheduler's {name} is {config[name]!r}, which is not served yet")
    if "beta_start" not in config:
        raise ModelError(f"{source}: its scheduler ({config.get('_class_name')}) has no betas, and is not served yet")
    if config.get(ZERO_SNR) and config.get("prediction_type", "epsilon") == "epsilon":
        raise ModelError(
            f"{source}: its noise schedule ends in noise alone (zero terminal SNR), of which a model that predicts "
            "the noise learns nothing; set model.prediction_type = v_prediction, or model.zero_terminal_snr = off"
        )


def alphas_cumprod(config: Mapping[str, Any]) -> torch.Tensor:
    """Return ᾱ_t of every timestep, (T,) float64, for a scheduler configuration as diffusers keeps it.

    Raises ValueError for an unknown beta schedule. DDPM, arXiv:2006.11239, section 2; ``scaled_linear`` is latent
    diffusion's, arXiv:2112.10752.
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
        raise ValueError(f"beta schedule {config['beta_schedule']!r} is unknown")
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    return _rescale_to_zero_snr(alpha_bar) if config.get(ZERO_SNR) else alpha_bar


def _rescale_to_zero_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """Shift and scale √ᾱ so that its first value stays and its last is 0 (arXiv:2305.08891, algorithm 1)."""
    signal = alpha_bar.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def min_snr_weight(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR-γ loss weight of each example, (B,): min(SNR, γ)/SNR, for velocity min(SNR, γ)/(SNR + 1).

    Hang et al., arXiv:2303.09556, section 3.4.
    """
    clipped = snr.clamp(max=gamma)
    return clipped / snr if prediction_type == "epsilon" else clipped / (snr + 1)


def debiased_weight(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Loss weight of debiased estimation, (B,): 1/√SNR, for velocity √SNR/(SNR + 1), which is the same error.

    Yu et al., arXiv:2310.08442, eq. 10.
    """
    return snr.rsqrt() if prediction_type == "epsilon" else snr.sqrt() / (snr + 1)


def p2_weight(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """P2 loss weight with k = γ = 1, (B,): 1/(1 + SNR), for velocity SNR/(SNR + 1)².

    Choi et al., arXiv:2204.00227, eq. 8. Soft-min-SNR (arXiv:2401.11605) is the same curve but for its knee.
    """
    return 1 / (1 + snr) if prediction_type == "epsilon" else snr / (snr + 1) ** 2


WEIGHTS = {"debiased": debiased_weight, "p2": p2_weight}
"""Weights by the value of the setting ``loss.weighting``."""
