"""A random Stable Diffusion 1.x of true architecture, small enough to build and run within a second.

Every part has the layout of the real model (four UNet levels, two layers each, a VAE of factor 8, a CLIP text
tower); only the widths are tiny. Pictures are 64 x 64, latents 8 x 8 x 4.
"""

import json
from pathlib import Path
from typing import Any

CAPTIONS = ["a red house on grass", "a blue cat in snow", "a photo of sks dog", "a green tree by the sea at night"]


def tiny_tokenizer() -> Any:
    """A CLIPTokenizer (byte-level BPE, 77 tokens) over the vocabulary of ``CAPTIONS``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = (word for caption in CAPTIONS for word in caption.split())
    bpe.train_from_iterator(words, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def tiny_clip_text_config(tokenizer: Any) -> Any:
    """The configuration of a two-layer, 16-wide CLIP text tower for ``tokenizer``."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def tiny_models(seed: int = 0) -> dict[str, Any]:
    """Tokenizer, text encoder, UNet, VAE and scheduler of a tiny SD 1.x, in float32, by component name."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "tokenizer": tokenizer,
            "text_encoder": CLIPTextModel(tiny_clip_text_config(tokenizer)).eval(),
            "unet": UNet2DConditionModel(
                sample_size=8, block_out_channels=(8, 16, 16, 16), norm_num_groups=4, cross_attention_dim=16,
                attention_head_dim=2,
            ).eval(),
            "vae": AutoencoderKL(
                in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(4, 4, 8, 8), norm_num_groups=4,
                layers_per_block=1, sample_size=64,
            ).eval(),
            "scheduler": PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                set_alpha_to_one=False, steps_offset=1,
            ),
        }  # fmt: skip


def tiny_sd1(folder: Path, seed: int = 0) -> Path:
    """Write a tiny SD 1.x as a diffusers folder, and return it. A megabyte; the same for the same seed."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **tiny_models(seed), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_clip(folder: Path, seed: int = 0) -> Path:
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


def tiny_adapter(path: Path, **metadata: str) -> Path:
    """Write a LoRA of rank 2 for one layer, in kohya's keys, with such a header; return its path."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    save_file({f"{stem}.{name}": tensor for name, tensor in tensors.items()}, path, metadata)
    return path
