"""Random Stable Diffusion models of true architecture, small enough to build and run within a second.

Every part has the layout of the real model (the UNet's levels, two layers each, a VAE of factor 8, CLIP text
towers); only the widths are tiny. Pictures are 64 x 64, latents 8 x 8 x 4.
"""

import copy
import json
from pathlib import Path
from typing import Any

CAPTIONS = ["a red house on grass", "a blue cat in snow", "a photo of sks dog", "a green tree by the sea at night"]


def tiny_tokenizer() -> Any:
    """A CLIPTokenizer (byte-level BPE, 77 tokens) that knows the words of ``CAPTIONS``, letter by letter."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in sorted({word for caption in CAPTIONS for word in caption.split()}):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        merges |= {("".join(letters[:number]), letter): None for number, letter in enumerate(letters) if number}
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=[*merges], model_max_length=77)


def tiny_clip_text_config(tokenizer: Any, width: int = 16) -> Any:
    """The configuration of a two-layer CLIP text tower for ``tokenizer``."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=width, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


SECOND_TEXT_WIDTH = 24
"""The width of SDXL's second text encoder: by their widths alone single files' encoders are told apart."""
LEVELS: dict[str, Any] = {"norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {**LEVELS, "block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16},
    "sd2": {**LEVELS, "block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16, "use_linear_projection": True},
    "sdxl": {
        **LEVELS, "block_out_channels": (8, 16, 16), "cross_attention_dim": 16 + SECOND_TEXT_WIDTH,
        "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": SECOND_TEXT_WIDTH + 6 * 8,
    },
}  # fmt: skip
"""The true architectures' UNets, with tiny widths, by family."""


def tiny_models(seed: int = 0, family: str = "sd1") -> dict[str, Any]:
    """Every part of a tiny model of ``family`` in float32, by component name. ``sd2`` predicts the velocity."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = {
            "tokenizer": tokenizer,
            "text_encoder": CLIPTextModel(tiny_clip_text_config(tokenizer)).eval(),
            "unet": UNet2DConditionModel(**UNET_CONFIGS[family]).eval(),
            "vae": AutoencoderKL(
                in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(4, 4, 8, 8), norm_num_groups=4,
                layers_per_block=1, sample_size=64,
            ).eval(),
            "scheduler": PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                set_alpha_to_one=False, steps_offset=1,
                prediction_type="v_prediction" if family == "sd2" else "epsilon",
            ),
        }  # fmt: skip
        if family == "sdxl":
            found["text_encoder_2"] = CLIPTextModelWithProjection(
                tiny_clip_text_config(tokenizer, SECOND_TEXT_WIDTH)
            ).eval()
            found["tokenizer_2"] = copy.deepcopy(tokenizer)
            found["tokenizer_2"].pad_token = "!"
        return found


def tiny_pipeline(seed: int = 0, family: str = "sd1") -> Any:
    """A plain diffusers pipeline over ``tiny_models``."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if family == "sdxl":
        return StableDiffusionXLPipeline(
            **tiny_models(seed, family), force_zeros_for_empty_prompt=False, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **tiny_models(seed, family), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def write_tiny_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a tiny model of ``family`` as a diffusers folder, and return it. A megabyte; the same for the same seed."""
    tiny_pipeline(seed, family).save_pretrained(folder)
    return Path(folder)


def write_tiny_sd1(folder: Path, seed: int = 0) -> Path:
    """Write a tiny SD 1.x as a diffusers folder, and return it."""
    return write_tiny_model(folder, "sd1", seed)


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random CLIP (image and text towers, 32-pixel pictures) as a transformers folder; return it."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=16,
    )  # fmt: skip
    config = CLIPConfig(
        text_config=tiny_clip_text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normalisation = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.25, 0.2]}
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return Path(folder)


def write_tiny_adapter(path: Path, **metadata: str) -> Path:
    """Write a LoRA of rank 2 for one layer, in kohya's keys, with such a header; return its path."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    save_file({f"{stem}.{name}": tensor for name, tensor in tensors.items()}, path, metadata)
    return path
