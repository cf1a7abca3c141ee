"""Which family a folder or a file is of, and how large it draws, from its configs or its header alone."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError, SdloraError
from sdlora.families import FAMILIES
from sdlora.families.untrusted_folder import MOST_LEVELS, read_config, read_index, require_data_only
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formatting import one_line

PIPELINES = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionInpaintPipeline": "inpainting",
    "StableDiffusionXLInpaintPipeline": "inpainting",
}
UNET = "model.diffusion_model."
"""What the names of a UNet's tensors begin with in a single file."""
BARE_UNETS = ("input_blocks.", "down_blocks.")
"""What they begin with in files that hold nothing else: of the original layout, and of diffusers'."""
ATTENTION = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
"""Of the first level's text attention, which SDXL has not."""
USUAL_SIZE = 512


def detect_folder(folder: Path) -> str:
    """The family of a diffusers folder, from its ``model_index.json`` and its UNet's config.

    Raises ModelError if it is no such folder, or not one of data alone (``require_data_only``).
    """
    index = read_index(folder)
    require_data_only(folder, index)
    family = PIPELINES.get(index.get("_class_name", ""), "")
    if not (folder / "unet" / "config.json").exists():
        raise ModelError(f"{folder}: the part unet is missing (no unet/config.json)")
    unet = read_config(folder / "unet" / "config.json")
    if unet.get("in_channels") == 9:
        return "inpainting"
    if family == "sd1" and (unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024):
        return "sd2"  # SD 1.x projects with convolutions.
    return family or one_line(index.get("_class_name"), 60)


def detect_file(file: Path) -> str:
    """The family of a single-file checkpoint of the original layout, from its tensors' names and shapes.

    Raises ModelError if it holds no UNet beside other parts, FormatError if it is no safetensors file.
    """
    header = read_safetensors_header(file)
    if not any(key.startswith(UNET) for key in header):
        if any(key.startswith(BARE_UNETS) for key in header):
            raise ModelError(f"{file}: holds a UNet alone; give a file that holds the text encoder and the VAE too")
        raise ModelError(f"{file}: holds no diffusion model ({UNET}* tensors); is it an adapter?")
    channels = _shape(header, f"{UNET}input_blocks.0.0.weight", 4)[1]
    if channels not in (0, 4):
        return "inpainting" if channels == 9 else f"UNets of {channels} channels"
    if any(key.startswith("conditioner.embedders.0.model.") for key in header):
        return "SDXL refiner"
    pooled, attends = f"{UNET}label_emb.0.0.weight" in header, ATTENTION in header
    if "conditioner.embedders.1.model.ln_final.weight" in header or (pooled and not attends):
        return "sdxl"
    if pooled:
        return "SD 2.1 unCLIP"
    openclip = any(key.startswith("cond_stage_model.model.") for key in header)
    return "sd2" if openclip or _shape(header, ATTENTION, 2)[1] == 1024 else "sd1"


def require_served(family: str, place: object) -> str:
    """``family``, if it is served. Raises ModelError that names it, and ``place``."""
    if family not in FAMILIES:
        raise ModelError(f"{place}: is of the family {family}, which is not served yet; served: {', '.join(FAMILIES)}")
    return family


def folder_size(folder: Path) -> int:
    """The side in pixels that a diffusers folder draws best; 512 where its configs do not tell."""
    with suppress(SdloraError, ValueError, KeyError, TypeError, OverflowError):  # Loading it will say what is missing.
        unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"][:MOST_LEVELS]) - 1)
    return USUAL_SIZE


def hub_size(repository: str) -> int:
    """The side in pixels that a hub's model draws best, as its name suggests."""
    name = repository.rpartition("/")[2].lower()
    if "xl" in name:
        return 1024
    second = "stable-diffusion-2" in name and "base" not in name
    return 768 if second or "768" in name else USUAL_SIZE


def _shape(header: dict[str, Any], name: str, dimensions: int) -> list[int]:
    """The shape of a tensor of so many ``dimensions``; zeros if there is no such tensor."""
    shape = header.get(name, {}).get("shape", [])
    return shape if isinstance(shape, list) and len(shape) == dimensions else [0] * dimensions
