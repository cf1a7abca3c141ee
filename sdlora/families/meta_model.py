"""A base model's layers without their weights: enough to tell which adapters fit, at once and without memory."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.errors import ModelError
from sdlora.families import FAMILIES, family_components
from sdlora.families.base import Component
from sdlora.families.base_models import locate_base
from sdlora.families.detect import detect_folder, require_served
from sdlora.families.hub import fetch_files
from sdlora.families.loading import quiet_libraries
from sdlora.families.settings import Model
from sdlora.families.single_file import config_folder, family_of_complete_file
from sdlora.families.untrusted_folder import read_config
from sdlora.formatting import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.families.base import Family

CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json")


class MetaModel(NamedTuple):
    """Family of a base, and the modules that adapters may go into, by component, on the meta device."""

    family: str
    models: "dict[str, nn.Module]"


def build_meta_model(base: str) -> MetaModel:
    """Build the layers of ``base``. Only the configs of a hub id are fetched; a single file's are bundled.

    Raises ModelError for what is missing, unknown, gated or offline.
    """
    folder, family = _config_folder(Model(base=base))
    with quiet_libraries():
        components = FAMILIES[family].components if family in FAMILIES else family_components()
        adapted = {name: component for name, component in components.items() if component.target_groups}
        return MetaModel(family, _build_modules(folder, base, adapted))


def build_meta_family(model: Model, dtype: "torch.dtype") -> "Family":
    """Build the base ``model`` as a family without weights or a tokenizer, on the meta device.

    Its VAE is in float32, all else in ``dtype``.

    Raises what ``build_meta_model`` raises.
    """
    folder, name = _config_folder(model)
    family: type[Family] = FAMILIES[require_served(name, model.base)]
    weighted = {part: component for part, component in family.components.items() if component.weights}
    with quiet_libraries():
        modules = _build_modules(folder, model.base, weighted)
    if missing := weighted.keys() - modules.keys():
        raise ModelError(f"{model.base}: has no {min(missing)}; give a complete base model")
    schedule = read_config(folder / "scheduler" / "scheduler_config.json")
    for part in modules.keys() - {"vae"}:
        modules[part].to(dtype=dtype)
    return family.from_meta(modules, schedule, model.base, model.schedule)


def _config_folder(model: Model) -> tuple[Path, str]:
    """Return the folder with the configs of the base ``model``, and its family's name."""
    source = locate_base(model.base)
    path = Path(source.location)
    if source.kind == "file":
        family = family_of_complete_file(path)
        return config_folder(family), family
    folder = fetch_files(model, CONFIGS) if source.kind == "hub" else path
    return folder, detect_folder(folder)


def _build_modules(folder: Path, base: str, components: Mapping[str, Component]) -> "dict[str, nn.Module]":
    """Build those of ``components`` that have a config, on the meta device: full-size ones would fill the memory."""
    import torch

    modules: dict[str, nn.Module] = {}
    try:
        with torch.device("meta"):
            for name, component in components.items():
                if (folder / name / "config.json").exists():
                    modules[name] = _build(folder / name, component)
    except Exception as error:  # A stranger's configs: the libraries raise almost anything.
        raise ModelError(f"{base}: its configs cannot be read: {first_line(error)}") from error
    return modules


def _build(folder: Path, component: Component) -> "nn.Module":
    """Build the module whose config lies in ``folder``, of the class that the config names if the component has it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = (config.get("_class_name"), *(config.get("architectures") or ()))
    kind = next((name for name in component.classes if name in named), component.classes[0])
    cls = getattr(import_module(component.library), kind)
    if component.library == "diffusers":
        return cls.from_config(cls.load_config(folder))
    return cls(cls.config_class.from_pretrained(folder, local_files_only=True))
