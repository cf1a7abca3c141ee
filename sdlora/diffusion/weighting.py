"""How much each timestep's error counts. All weights are for the error that the target's prediction has."""

import torch


def min_snr_weight(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR-γ loss weight of each example, (B,): min(SNR, γ)/SNR, for velocity min(SNR, γ)/(SNR + 1).

    Hang et al., arXiv:2303.09556, section 3.4.
    """
    clipped = snr.clamp(max=gamma)
    return clipped / snr if prediction_type == "epsilon" else clipped / (snr + 1)


def debiased_weight(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Debiased estimation's loss weight, (B,): 1/√SNR, for velocity √SNR/(SNR + 1), which is the same error.

    Yu et al., arXiv:2310.08442, eq. 10.
    """
    return snr.rsqrt() if prediction_type == "epsilon" else snr.sqrt() / (snr + 1)


def p2_weight(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """P2 weighting's loss weight with k = γ = 1, (B,): 1/(1 + SNR), for velocity SNR/(SNR + 1)².

    Choi et al., arXiv:2204.00227, eq. 8. Soft-min-SNR (arXiv:2401.11605) is the same curve but for its knee.
    """
    return 1 / (1 + snr) if prediction_type == "epsilon" else snr / (snr + 1) ** 2


WEIGHTS = {"debiased": debiased_weight, "p2": p2_weight}
"""By the name that the setting has."""
