"""The pictures that were drawn, in their folder: the newest, and a trash from which they come back."""

import os
from pathlib import Path

from sdlora.errors import FileError
from sdlora.files import fsync_folder, inside, unused

TRASH = "trash"


def newest(folder: Path, most: int | None = None) -> list[Path]:
    """The pictures in ``folder``, the newest first, at most ``most``."""
    return sorted(folder.glob("[0-9]*.png"), key=_age)[:most]


def discard(folder: Path, name: str) -> str:
    """Move picture ``name`` to the trash; returns what it is called there. Raises FileError if there is none."""
    return _move(folder, name, folder / TRASH)


def restore(folder: Path, name: str) -> str:
    """Bring ``name`` back from the trash; returns what it is called now. Raises FileError if it is not there."""
    return _move(folder / TRASH, name, folder)


def _move(source: Path, name: str, target: Path) -> str:
    path = inside(source, name)
    if path.parent != source.resolve() or path.suffix != ".png" or not path.is_file():
        raise FileError(f"{name}: this picture is not there any more")
    try:
        target.mkdir(parents=True, exist_ok=True)
        place = unused(target / path.name)
        os.replace(path, place)
        fsync_folder(target)
    except OSError as error:
        raise FileError(f"{name}: cannot be moved ({error.strerror or error})") from None
    return place.name


def _age(path: Path) -> tuple[int, str]:
    try:
        return -path.stat().st_mtime_ns, path.name
    except OSError:  # Just moved away by another visitor.
        return 0, path.name
