"""A base model's layers without their weights: enough to tell which adapters fit, in a moment and in no memory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.errors import ModelError
from sdlora.families import FAMILIES
from sdlora.families.base_models import locate_base
from sdlora.families.detect import detect_folder, require_served
from sdlora.families.hub import fetch_files
from sdlora.families.loading import quiet_libraries
from sdlora.families.settings import Model
from sdlora.families.single_file import config_folder, family_of_complete_file
from sdlora.formatting import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.families.base import Family

CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json")


class MetaModel(NamedTuple):
    """The family of a base, and what adapters may go into, by component: names and shapes, on the meta device."""

    family: str
    models: "dict[str, nn.Module]"


def build_meta_model(base: str) -> MetaModel:
    """The layers of ``base``. Of a hub id the configs alone are fetched; a single file's are bundled.

    Raises ModelError for what is missing, unknown, gated or offline.
    """
    folder, family = _config_folder(Model(base=base))
    with quiet_libraries():
        return MetaModel(family, _models(folder, base))


def build_meta_family(model: Model, dtype: "torch.dtype") -> "Family":
    """The base ``model`` as a family without weights, on the meta device: its VAE in float32, all else in ``dtype``. It
    cannot tell texts apart.

    Raises what ``build_meta_model`` raises.
    """
    import torch
    from diffusers import AutoencoderKL

    folder, name = _config_folder(model)
    with quiet_libraries(), torch.device("meta"):
        parts = {name: part.to(dtype=dtype) for name, part in _models(folder, model.base).items()}
        try:
            parts["vae"] = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
            schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # As in ``_models``.
            raise ModelError(f"{model.base}: its configs cannot be read: {first_line(error)}") from error
    family: Any = FAMILIES[require_served(name, model.base)]
    words = SimpleNamespace(eos_token_id=0, pad_token_id=0)
    factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    pipeline = SimpleNamespace(
        **parts, **dict.fromkeys(family.tokenizers, words), scheduler=SimpleNamespace(config=schedule),
        vae_scale_factor=factor,
    )  # fmt: skip
    found: Family = family(pipeline, model.base, model.schedule, {})
    return found


def _config_folder(model: Model) -> tuple[Path, str]:
    """The folder with the configs of the base ``model``, and its family's name."""
    source = locate_base(model.base)
    place = Path(source.location)
    if source.kind == "file":
        family = family_of_complete_file(place)
        return config_folder(family), family
    folder = fetch_files(model, CONFIGS) if source.kind == "hub" else place
    return folder, detect_folder(folder)


def _models(folder: Path, base: str) -> "dict[str, Any]":
    """UNet and text encoders, on the meta device: full-size ones would fill the memory."""
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    models: dict[str, Any] = {}
    try:
        with torch.device("meta"):
            models["unet"] = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
            for part in sorted(folder.glob("text_encoder*/")):
                config = transformers.CLIPTextConfig.from_pretrained(part, local_files_only=True)
                projects = (config.architectures or [""])[0] == "CLIPTextModelWithProjection"
                kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
                models[part.name] = kind(config)
    except Exception as error:  # A stranger's configs: the libraries raise almost anything.
        raise ModelError(f"{base}: its configs cannot be read: {first_line(error)}") from error
    return models
