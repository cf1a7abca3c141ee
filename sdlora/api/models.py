"""Base models: list them, download them, and resolve their names."""

from contextlib import suppress
from pathlib import Path

from sdlora.errors import ModelError, SdloraError
from sdlora.families.base_models import (
    BUNDLED,
    HUB_ID,
    ModelEntry,
    bundled_bases,
    find_model,
    inspect_model,
    list_downloaded,
    list_models,
    model_folders,
)
from sdlora.families.base_models import locate_base as locate_base
from sdlora.families.base_models import native_size as native_size
from sdlora.families.hub import cache_folder as cache_folder
from sdlora.families.known_bases import KNOWN_BASES as KNOWN_BASES
from sdlora.families.known_bases import KnownBase as KnownBase
from sdlora.families.known_words import known_words as known_words
from sdlora.families.settings import trimmed_base
from sdlora.filesystem.paths import data_root, existing_path
from sdlora.jobs.model_download import DownloadJob as DownloadJob
from sdlora.storage.library import trained_base_settings as trained_base_settings


def available_models(data_dir: Path | None = None) -> list[ModelEntry]:
    """Return the bundled base models, the entries of the models folders, and what was downloaded from the hub.

    Unusable ones have their problem.
    """
    return [
        *(inspect_model(BUNDLED[name], name) for name in bundled_bases()),
        *list_models(model_folders(data_root(data_dir))),
        *list_downloaded(),
    ]


def base_choices(data_dir: Path | None = None) -> list[tuple[str, str]]:
    """Return the name of each usable base model, and its value as ``model.base``: the name, a path or a hub id."""
    in_folders = {model.name for model in list_models(model_folders(data_root(data_dir)))}
    usable = (model for model in available_models(data_dir) if not model.problem)
    return [(model.name, str(model.path) if model.name in in_folders else model.name) for model in usable]


def download_job(base: str, revision: str | None = None, variant: str | None = None) -> DownloadJob:
    """Return the job that downloads ``base`` from the hub. Raises ModelError for what is no hub id."""
    base = base.strip()
    if not HUB_ID.fullmatch(base):
        known = ", ".join(known.id for known in KNOWN_BASES)
        raise ModelError(f"{base or 'the id'}: is no hub id such as {known}")
    return DownloadJob(base=base, revision=revision, variant=variant)


def downloaded_bases() -> set[str]:
    """Return the ids of the base models that were downloaded from the hub, and can be used."""
    return {model.name for model in list_downloaded() if not model.problem}


def models_folder(data_dir: Path | None = None) -> Path:
    """Return the folder in the data folder where base models of one's own have names."""
    return data_root(data_dir) / "models"


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
