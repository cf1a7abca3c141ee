"""The models folders: base models that lie there are known by their names."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.families.detect import detect_folder, folder_size, require_served
from sdlora.families.original import config_folder, family_of_complete_file
from sdlora.files import default_data_dir, existing_path

VARIABLE = "SDLORA_MODELS"
MOST = 2000
"""Files and folders of a models folder that are looked at."""
LEADS_OUT = f"is a link that leads out of the models folder; put the folder that it leads to into ${VARIABLE}"
ENDING = ".safetensors"


@dataclass(frozen=True)
class ModelEntry:
    """A base model in a models folder; or what looks like one, with the ``problem`` that it has."""

    name: str
    """Its path in the models folder, without the ending."""
    path: Path
    family: str = ""
    native_size: int = 0
    """Side in pixels."""
    bytes: int = 0
    problem: str = ""


def model_folders(data_dir: Path | None = None) -> list[Path]:
    """The models folders that there are: those of ``$SDLORA_MODELS``, then ``models`` in the data folder."""
    named = [Path(name.strip()) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name.strip()]
    places = map(existing_path, (*named, (data_dir or default_data_dir()) / "models"))
    return [*dict.fromkeys(place.resolve() for place in places if place is not None and place.is_dir())]


def find_model(name: str, places: Sequence[Path]) -> Path | None:
    """Where the model called ``name`` lies, in the first of the models folders that has it."""
    if not 1 <= len(Path(name).parts) <= 2:
        return None
    for place in places:
        for ending in ("", ENDING):
            path = existing_path(f"{name}{ending}", place)
            if path is not None and _is_model(path) and _lies_in(path, place):
                return path
    return None


def list_models(places: Sequence[Path]) -> list[ModelEntry]:
    """What lies in the models folders, by name, what cannot be used last. Of two of one name the first is had."""
    found: dict[str, ModelEntry] = {}
    for place in places:
        for path in _models(place):
            relative = path.relative_to(place).as_posix()
            name = relative.removesuffix(ENDING)
            taken = name in found and found[name].path.parent == path.parent  # a folder of the file's name
            name = relative if taken else name
            found.setdefault(
                name, inspect_model(path, name) if _lies_in(path, place) else ModelEntry(name, path, problem=LEADS_OUT)
            )
    return sorted(found.values(), key=lambda one: (bool(one.problem), one.name.lower()))


def _models(place: Path) -> Iterator[Path]:
    """What could be models at most two levels deep, folders first, among the first ``MOST`` entries."""
    waiting, left = [place], MOST
    while waiting and left:
        folder = waiting.pop(0)
        entries = _entries(folder)[:left]
        left -= len(entries)
        yield from (path for path in entries if _is_model(path) or path.suffix.lower() == ".ckpt")
        if folder == place:
            waiting += [path for path in entries if path.is_dir() and not path.is_symlink() and not _is_model(path)]


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, folders first, without what is hidden or may not be seen."""
    try:
        seen = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(seen, key=lambda path: (not path.is_dir(), path.name))
    except OSError:
        return []


def _is_model(path: Path) -> bool:
    if path.suffix.lower() == ENDING:
        return path.is_file()
    return (path / "model_index.json").is_file()


def _lies_in(path: Path, place: Path) -> bool:
    return path.resolve().is_relative_to(place)


def inspect_model(path: Path, name: str) -> ModelEntry:
    """What ``path`` is, from its configs or its header."""
    if path.suffix.lower() == ".ckpt":
        return ModelEntry(name, path, problem="can run code when it is opened; convert it to .safetensors")
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    try:
        stats = [file.stat() for file in files]
        family, size = _family_and_size(path, max((stat.st_mtime_ns for stat in stats), default=0))
    except (OSError, SdloraError) as error:
        return ModelEntry(name, path, problem=str(error).removeprefix(f"{path}: "))
    return ModelEntry(name, path, family, size, sum(stat.st_size for stat in stats))


@lru_cache(maxsize=256)
def _family_and_size(path: Path, stamp: int) -> tuple[str, int]:
    """The family and the native size in pixels, read anew where ``stamp`` changed. Raises SdloraError."""
    if path.is_file():
        family = family_of_complete_file(path)
        return family, folder_size(config_folder(family))
    return require_served(detect_folder(path), path), folder_size(path)
