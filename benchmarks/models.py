"""Base models to measure on: the bundled one, any folder or hub id, or a full-size SD 1.5 with random weights."""

from pathlib import Path
from typing import Any

import torch

from sdlora.families.base_models import locate_base

RANDOM = "sd15-random"
BOS, EOS = 49406, 49407
UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def find(model: str, work: Path) -> str:
    """A folder or hub id that loads as ``model``; what has to be made for it goes into ``work``."""
    return str(random_sd15(work / RANDOM)) if model == RANDOM else locate_base(model).location


def random_sd15(folder: Path) -> Path:
    """Write a Stable Diffusion 1.5 of true architecture and size (1.07 G parameters, float16) and random weights."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(**UNET),
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=byte_tokenizer(),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """CLIP's alphabet without its merges, a letter a token: random weights know no words anyway."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    return CLIPTokenizer(vocab=ids | {"<|startoftext|>": BOS, "<|endoftext|>": EOS}, merges=[], model_max_length=77)
