"""Noise processes: tensors in, tensors out. No config, no files."""

ZERO_SNR = "rescale_betas_zero_snr"
"""Entry of a scheduler's config: whether the noise schedule ends in pure noise (arXiv:2305.08891)."""
