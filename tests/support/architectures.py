"""Layouts of the real models, without weights."""

from functools import cache

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def _clip(width: int, layers: int, heads: int, cls: type = CLIPTextModel) -> torch.nn.Module:
    return cls(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
        )
    )


@cache
def meta_models(family: str) -> dict[str, torch.nn.Module]:
    """The real models' layouts without weights (the configurations of their repositories)."""
    with torch.device("meta"):
        if family == "sd1":
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
            return {"unet": unet, "text_encoder": _clip(768, 12, 12)}
        if family == "sd2":
            heads = (5, 10, 20, 20)
            unet = UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=heads, use_linear_projection=True)
            return {"unet": unet, "text_encoder": _clip(1024, 23, 16)}
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, use_linear_projection=True,
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        second = _clip(1280, 32, 20, CLIPTextModelWithProjection)
        return {"unet": unet, "text_encoder": _clip(768, 12, 12), "text_encoder_2": second}
