"""Base models: list them, and resolve their names."""

from contextlib import suppress
from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.families.base_models import (
    BUNDLED,
    ModelEntry,
    bundled_bases,
    find_model,
    inspect_model,
    list_models,
    model_folders,
)
from sdlora.families.base_models import locate_base as locate_base
from sdlora.families.base_models import native_size as native_size
from sdlora.families.known_words import known_words as known_words
from sdlora.families.settings import trimmed_base
from sdlora.filesystem.paths import data_root, existing_path
from sdlora.storage.library import trained_base_settings as trained_base_settings


def available_models(data_dir: Path | None = None) -> list[ModelEntry]:
    """Return the bundled base models, then the entries of the models folders, unusable ones with their problem."""
    return [
        *(inspect_model(BUNDLED[name], name) for name in bundled_bases()),
        *list_models(model_folders(data_root(data_dir))),
    ]


def base_choices(data_dir: Path | None = None) -> list[tuple[str, str]]:
    """Return the name of each usable base model, and its value as ``model.base``: the name, or a path."""
    bundled = bundled_bases()
    usable = (model for model in available_models(data_dir) if not model.problem)
    return [(model.name, model.name if model.name in bundled else str(model.path)) for model in usable]


def resolve_base(base: str, data_dir: Path | None = None) -> str:
    """Return ``base``, or the path of the model of that name in a models folder, so that it stays the same later."""
    base = trimmed_base(base)
    resolved = base in bundled_bases() or existing_path(base)
    return base if resolved else str(find_model(base, model_folders(data_root(data_dir))) or base)


def is_single_file(base: str) -> bool:
    """Tell whether ``base`` is a single .safetensors file, so that adapters can be baked into another such file."""
    with suppress(SdloraError):
        return locate_base(base).kind == "file"
    return False
