"""Base models by name: bundled ones, those in the models folders, and what else ``model.base`` can be."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sdlora.errors import FormatError, ModelError, SdloraError
from sdlora.families import FAMILIES, single_file
from sdlora.families.detect import (
    USUAL_SIZE,
    detect_file,
    detect_folder,
    folder_size,
    hub_family,
    hub_size,
    require_served,
)
from sdlora.families.hub import cached_models, missing_weights
from sdlora.families.settings import Model, trimmed_base
from sdlora.families.single_file import config_folder, family_of_complete_file
from sdlora.filesystem.paths import PICKLES, default_data_dir, existing_path
from sdlora.formatting import did_you_mean

VARIABLE = "SDLORA_MODELS"
MOST = 2000
"""Most files and folders of a models folder that are examined."""
LEADS_OUT = f"is a link that leads out of the models folder; put the folder that it leads to into ${VARIABLE}"
ENDING = ".safetensors"


@dataclass(frozen=True)
class ModelEntry:
    """A base model in a models folder, or what looks like one, with its ``problem``."""

    name: str
    """Path in the models folder, without the suffix."""
    path: Path
    family: str = ""
    native_size: int = 0
    """Side in pixels of the images that it was trained on."""
    bytes: int = 0
    problem: str = ""


def model_folders(data_dir: Path | None = None) -> list[Path]:
    """Return the models folders that exist: those of ``$SDLORA_MODELS``, then ``models`` in the data folder."""
    named = [Path(name.strip()) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name.strip()]
    folders = map(existing_path, (*named, (data_dir or default_data_dir()) / "models"))
    return [*dict.fromkeys(folder.resolve() for folder in folders if folder is not None and folder.is_dir())]


def find_model(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the path of the model called ``name`` in the first of the models folders that has it."""
    if not 1 <= len(Path(name).parts) <= 2:
        return None
    for folder in folders:
        for ending in ("", ENDING):
            path = existing_path(f"{name}{ending}", folder)
            if path is not None and _is_model(path) and _lies_in(path, folder):
                return path
    return None


def list_models(folders: Sequence[Path]) -> list[ModelEntry]:
    """List the models in the models folders by name, unusable ones last. The first of two with one name counts."""
    found: dict[str, ModelEntry] = {}
    for folder in folders:
        for path in _models(folder):
            relative = path.relative_to(folder).as_posix()
            name = relative.removesuffix(ENDING)
            taken = name in found and found[name].path.parent == path.parent  # a folder of the file's name
            name = relative if taken else name
            found.setdefault(
                name, inspect_model(path, name) if _lies_in(path, folder) else ModelEntry(name, path, problem=LEADS_OUT)
            )
    return sorted(found.values(), key=lambda one: (bool(one.problem), one.name.lower()))


def _models(root: Path) -> Iterator[Path]:
    """Yield possible models at most two levels deep, folders first, among the first ``MOST`` entries."""
    waiting, left = [root], MOST
    while waiting and left:
        folder = waiting.pop(0)
        entries = _entries(folder)[:left]
        left -= len(entries)
        yield from (path for path in entries if _is_model(path) or path.suffix.lower() == ".ckpt")
        if folder == root:
            waiting += [path for path in entries if path.is_dir() and not path.is_symlink() and not _is_model(path)]


def _entries(folder: Path) -> list[Path]:
    """Return a folder's entries, folders first, without hidden or inaccessible ones."""
    try:
        seen = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(seen, key=lambda path: (not path.is_dir(), path.name))
    except OSError:
        return []


def _is_model(path: Path) -> bool:
    if path.suffix.lower() == ENDING:
        return path.is_file()
    return (path / "model_index.json").is_file()


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)


def inspect_model(path: Path, name: str) -> ModelEntry:
    """Describe the model at ``path`` from its configs or its header."""
    if path.suffix.lower() == ".ckpt":
        return ModelEntry(name, path, problem="can run code when it is opened; convert it to .safetensors")
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    try:
        stats = [file.stat() for file in files]
        family, size = _family_and_size(path, max((stat.st_mtime_ns for stat in stats), default=0))
    except (OSError, SdloraError) as error:
        return ModelEntry(name, path, problem=str(error).removeprefix(f"{path}: "))
    return ModelEntry(name, path, family, size, sum(stat.st_size for stat in stats))


def list_downloaded() -> list[ModelEntry]:
    """List the models of served families in the hub's cache by their ids, unusable ones with their problem."""
    found = (_inspect_download(name, folder) for name, folder in cached_models())
    return [entry for entry in found if entry.family in FAMILIES]


def _inspect_download(name: str, folder: Path) -> ModelEntry:
    entry = inspect_model(folder, name)
    if entry.family not in FAMILIES:
        return entry
    weighted = [part for part, component in FAMILIES[entry.family].components.items() if component.weights]
    if not missing_weights(folder, Model(base=name), weighted):
        return entry
    if not missing_weights(folder, Model(base=name, variant="fp16"), weighted):
        return replace(entry, problem="only its fp16 files are downloaded; use it with model.variant = fp16")
    return replace(entry, problem=f"is not completely downloaded; go on with: sdlora download {name}")


@lru_cache(maxsize=256)
def _family_and_size(path: Path, stamp: int) -> tuple[str, int]:
    """Return family and native size in pixels, read again if ``stamp`` changed. Raises SdloraError."""
    if path.is_file():
        family = family_of_complete_file(path)
        return family, folder_size(config_folder(family))
    return require_served(detect_folder(path), path), folder_size(path)


def bundled_bases() -> list[str]:
    """Return the bundled base models that are installed."""
    return [name for name, folder in BUNDLED.items() if (folder / "model_index.json").is_file()]


BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """Location of a base model: a folder, one file, or a repository of the hub."""

    kind: Literal["folder", "file", "hub"]
    location: str


def locate_base(base: str) -> ModelSource:
    """Decide what ``base`` names, without loading it. Raises ModelError if it names nothing."""
    base = trimmed_base(base)
    if base in BUNDLED:
        return ModelSource("folder", str(BUNDLED[base]))
    path, suffix = existing_path(base), Path(base).suffix.lower()
    if suffix in PICKLES:
        raise ModelError(f"{base}: this kind of file can run code when it is opened; convert it to .safetensors first")
    path = path or find_model(base, model_folders())
    if path is not None and path.is_dir():
        if not os.path.lexists(path / "model_index.json"):  # One that is no file is refused by its reader.
            raise ModelError(f"{base}: is no base model: it has no model_index.json; give a diffusers folder")
        return ModelSource("folder", str(path))
    if path is not None and path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise ModelError(f"{base}: is no base model; give a diffusers folder, a .safetensors file or a hub id")
        return ModelSource("file", str(path))
    if HUB_ID.fullmatch(base) and suffix != ".safetensors":
        return ModelSource("hub", base)
    raise ModelError(f"model.base: there is no {base!r}; {_hint(base)}")


def _hint(base: str) -> str:
    """Return the nearest existing name, or the kinds of values."""
    names = [*BUNDLED, *(found.name for found in list_models(model_folders()))]
    return did_you_mean(base, names, f"give {', '.join(BUNDLED)}, a folder, a .safetensors file or a hub id")


def native_size(base: str) -> int:
    """Return the native size in pixels of ``base``, as far as it is known without loading it.

    Raises ModelError for what cannot be a base model.
    """
    source = locate_base(base)
    if source.kind == "hub":
        return hub_size(base)
    if source.kind == "folder":
        return folder_size(Path(source.location))
    family = detect_file(Path(source.location))
    return folder_size(single_file.config_folder(family)) if family in FAMILIES else USUAL_SIZE


def family_of(base: str) -> str:
    """Return the family of ``base`` without loading it; guess a hub id's from its name; empty if it is unknown."""
    with suppress(ModelError, FormatError):
        source = locate_base(base)
        if source.kind == "folder":
            return detect_folder(Path(source.location))
        if source.kind == "file":
            return detect_file(Path(source.location))
        return hub_family(base)
    return ""
