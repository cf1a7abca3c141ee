"""How much each timestep's error counts."""

import torch


def min_snr_weight(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR-γ loss weight of each example, (B,): min(SNR, γ)/SNR, for velocity min(SNR, γ)/(SNR + 1).

    Hang et al., arXiv:2303.09556, section 3.4.
    """
    clipped = snr.clamp(max=gamma)
    return clipped / snr if prediction_type == "epsilon" else clipped / (snr + 1)
