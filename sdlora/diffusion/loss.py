"""Error of a prediction, and how much each timestep's error counts."""

import torch


def squared_error(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared error of each example, (B,) float32; ``mask`` (B, 1, H, W) weights positions.

    float32: the squares overflow in float16. With a mask the mean is taken over its weight, so that a small subject
    counts as much as a large one.
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    return (error * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3)).clamp_min(1e-6)


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
