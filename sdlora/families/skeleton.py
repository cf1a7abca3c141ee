"""A base model's layers without their weights: enough to tell which adapters fit, in a moment and in no memory."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.errors import ModelError, first_line
from sdlora.families.detect import detect_folder
from sdlora.families.hub import fetch
from sdlora.families.loading import locate, quiet_libraries
from sdlora.families.original import config_of, whole_family
from sdlora.families.settings import Model

if TYPE_CHECKING:
    from torch import nn

CONFIGS = ("model_index.json", "*/config.json")


class Skeleton(NamedTuple):
    """The family of a base, and what adapters may go into, by component: names and shapes, on the meta device."""

    family: str
    models: "dict[str, nn.Module]"


def skeleton(base: str) -> Skeleton:
    """The layers of ``base``. Of a hub id the configs alone are fetched; a single file's are bundled.

    Raises ModelError for what is missing, unknown, gated or offline.
    """
    source = locate(base)
    place = Path(source.location)
    if source.kind == "file":
        family = whole_family(place)
        folder = config_of(family)
    else:
        folder = fetch(Model(base=base), CONFIGS) if source.kind == "hub" else place
        family = detect_folder(folder)
    with quiet_libraries():
        return Skeleton(family, _models(folder, base))


def _models(folder: Path, base: str) -> "dict[str, nn.Module]":
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    models: dict[str, nn.Module] = {}
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
