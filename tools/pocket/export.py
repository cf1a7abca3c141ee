"""Write the trained networks as a Stable Diffusion folder in float16 that loads plainly, in float32 everywhere."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer

from tools.pocket.clip import DEVIATION, MEAN
from tools.pocket.unet import SCHEDULE

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 128},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 128, "width": 128},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": DEVIATION,
    "do_convert_rgb": True,
}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


def write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """`tokenizer.json` for new readers, `vocab.json` and `merges.txt` for old ones."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def write_text_encoder(clip: CLIPModel, folder: Path) -> None:
    """The text tower with the classic names `text_model.*`, which old and new versions of transformers read.

    The config says float32: without it transformers 5 would load the float16 file as float16 beside a float32 UNet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in clip.text_model.state_dict().items()}
    weights = {k: v for k, v in weights.items() if "position_ids" not in k}
    save_file(_half(weights), folder / "model.safetensors", metadata={"format": "pt"})
    config = clip.config.text_config.to_dict() | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
    }
    _write_json(folder / "config.json", config)


def write_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The measuring CLIP: model, tokenizer and what its pictures are prepared with."""
    clip.save_pretrained(folder)
    state = {k: v for k, v in clip.state_dict().items() if "position_ids" not in k}
    save_file(_half(state), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "float32"
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PREPROCESSING)
    write_tokenizer(tokenizer, folder)


def write_pipeline(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    scale: float,
    folder: Path,
) -> None:
    """The whole folder but for the CLIP."""
    vae.register_to_config(scaling_factor=scale)
    for part, model in (("unet", unet), ("vae", vae)):
        model.half().save_pretrained(folder / part)
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # Where it was loaded from, on the machine that trains.
        _write_json(folder / part / "config.json", config)
    write_tokenizer(tokenizer, folder / "tokenizer")
    write_text_encoder(clip, folder / "text_encoder")
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", INDEX)
