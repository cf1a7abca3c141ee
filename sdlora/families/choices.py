"""Which base models there are to choose from, by name: those that are bundled, and those in the models folders."""

from contextlib import suppress
from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.families.catalog import ModelEntry, find_model, inspect_model, list_models, model_folders
from sdlora.families.loading import BUNDLED, locate_base
from sdlora.families.loading import native_size as native_size
from sdlora.files import data_root, existing_path


def bundled_bases() -> list[str]:
    """The bundled base models that are there."""
    return [name for name, folder in BUNDLED.items() if (folder / "model_index.json").is_file()]


def available_models(data_dir: Path | None = None) -> list[ModelEntry]:
    """The bundled base models, then what lies in the models folders, with what is wrong with it if it is no base."""
    return [
        *(inspect_model(BUNDLED[name], name) for name in bundled_bases()),
        *list_models(model_folders(data_root(data_dir))),
    ]


def base_choices(data_dir: Path | None = None) -> list[tuple[str, str]]:
    """The names of base models that are there, each with what stands for it as ``model.base``."""
    known = bundled_bases()
    found = (model for model in available_models(data_dir) if not model.problem)
    return [(model.name, model.name if model.name in known else str(model.path)) for model in found]


def resolve_base(base: str, data_dir: Path | None = None) -> str:
    """``base``, or the path of the model of that name in a models folder: what a name means must not change later."""
    known = base in bundled_bases() or existing_path(base)
    return base if known else str(find_model(base, model_folders(data_root(data_dir))) or base)


def is_single_file(base: str) -> bool:
    """Whether ``base`` is one .safetensors file, so that adapters can be baked into another such file."""
    with suppress(SdloraError):
        return locate_base(base).kind == "file"
    return False
