"""LoRA: low-rank adaptation (arXiv:2106.09685). Settings here; PEFT does the layers."""
