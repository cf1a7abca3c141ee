"""A random DINOv2 that is small enough to build and run within a second."""

import json
from pathlib import Path

import torch

LEVELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_tiny_dinov2(folder: Path, seed: int = 0) -> Path:
    """Write a random ``Dinov2Model`` for squares of 28 px out of 32 as a transformers folder; return it."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, mlp_ratio=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Dinov2Model(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**LEVELS, **sizes}))
    return folder
