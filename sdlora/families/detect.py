"""Family and native size of a folder or a file, from its configs or its header alone."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError, SdloraError
from sdlora.families import FAMILIES
from sdlora.families.untrusted_folder import MOST_LEVELS, read_config, read_index, require_data_only
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formatting import one_line

INPAINTING = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
"""Pipelines that are recognised, to name them, and not served."""
INPAINTING_CHANNELS = 9
"""Input channels of an inpainting UNet: latents, masked latents and mask."""
UNET_PREFIX = "model.diffusion_model."
"""Beginning of the names of a UNet's tensors in a single file."""
BARE_UNET_PREFIXES = ("input_blocks.", "down_blocks.")
"""Beginnings in files of a UNet alone: of the original layout, and of diffusers'."""
FIRST_ATTENTION = f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
"""Text attention of the first level, which SDXL lacks."""
USUAL_SIZE = 512


def detect_folder(folder: Path) -> str:
    """Return the family of a diffusers folder, from its ``model_index.json`` and its denoiser's config.

    Raises ModelError if it is no such folder, or not one of data alone (``require_data_only``).
    """
    index = read_index(folder)
    require_data_only(folder, index)
    pipeline = index.get("_class_name")
    families = [family for family in FAMILIES.values() if pipeline in family.pipelines]
    denoiser = (families or [*FAMILIES.values()])[0].denoiser
    if not (folder / denoiser / "config.json").exists():
        raise ModelError(f"{folder}: the part {denoiser} is missing (no {denoiser}/config.json)")
    config = read_config(folder / denoiser / "config.json")
    if pipeline in INPAINTING or config.get("in_channels") == INPAINTING_CHANNELS:
        return "inpainting"
    return next((family.name for family in families if family.matches_config(config)), one_line(pipeline, 60))


def detect_file(file: Path) -> str:
    """Return the family of a single-file checkpoint, from its tensors' names and shapes.

    Raises ModelError if it holds no denoiser beside other components, FormatError if it is no safetensors file.
    """
    header = read_safetensors_header(file)
    found = next((family.name for family in FAMILIES.values() if family.matches_single_file(header)), "")
    if found := found or sgm_family(header):
        return found
    if any(key.startswith(BARE_UNET_PREFIXES) for key in header):
        raise ModelError(f"{file}: holds a UNet alone; give a file that holds the text encoder and the VAE too")
    raise ModelError(f"{file}: holds no diffusion model ({UNET_PREFIX}* tensors); is it an adapter?")


def sgm_family(header: Mapping[str, Any]) -> str:
    """Return the family of a file of Stable Diffusion's original layout, served or not; empty for any other file."""
    if not any(key.startswith(UNET_PREFIX) for key in header):
        return ""
    channels = _shape(header, f"{UNET_PREFIX}input_blocks.0.0.weight", 4)[1]
    if channels not in (0, 4):
        return "inpainting" if channels == INPAINTING_CHANNELS else f"UNets of {channels} channels"
    if any(key.startswith("conditioner.embedders.0.model.") for key in header):
        return "SDXL refiner"
    pooled, attends = f"{UNET_PREFIX}label_emb.0.0.weight" in header, FIRST_ATTENTION in header
    if "conditioner.embedders.1.model.ln_final.weight" in header or (pooled and not attends):
        return "sdxl"
    if pooled:
        return "SD 2.1 unCLIP"
    openclip = any(key.startswith("cond_stage_model.model.") for key in header)
    return "sd2" if openclip or _shape(header, FIRST_ATTENTION, 2)[1] == 1024 else "sd1"


def require_served(family: str, origin: object) -> str:
    """Return ``family``. Raises ModelError that names it and its ``origin`` if it is not served."""
    if family not in FAMILIES:
        raise ModelError(f"{origin}: is of the family {family}, which is not served yet; served: {', '.join(FAMILIES)}")
    return family


def folder_size(folder: Path) -> int:
    """Return the native size in pixels of a diffusers folder; 512 where its configs do not give it."""
    denoisers = (folder / name for name in dict.fromkeys(family.denoiser for family in FAMILIES.values()))
    with suppress(SdloraError, StopIteration, ValueError, KeyError, TypeError, OverflowError):  # Loading names it.
        denoiser = next(path for path in denoisers if path.is_dir())
        config, vae = (read_json(path / "config.json") for path in (denoiser, folder / "vae"))
        return int(config["sample_size"]) * 2 ** (len(vae["block_out_channels"][:MOST_LEVELS]) - 1)
    return USUAL_SIZE


def hub_size(repository: str) -> int:
    """Guess the native size in pixels of a hub's model from its name."""
    return max(_hub_sizes(repository).values()) or USUAL_SIZE


def hub_family(repository: str) -> str:
    """Guess the family of a hub's model from its name; empty if that does not tell."""
    sizes = _hub_sizes(repository)
    return max(sizes, key=sizes.__getitem__) if any(sizes.values()) else ""


def _hub_sizes(repository: str) -> dict[str, int]:
    """Return the native size that each family guesses from a hub model's name; 0 from one that is not its own."""
    name = repository.rpartition("/")[2].lower()
    return {key: family.hub_size(name) for key, family in FAMILIES.items()}


def _shape(header: Mapping[str, Any], name: str, dimensions: int) -> list[int]:
    """Return the shape of a tensor with so many ``dimensions``; zeros if there is no such tensor."""
    shape = header.get(name, {}).get("shape", [])
    return shape if isinstance(shape, list) and len(shape) == dimensions else [0] * dimensions
