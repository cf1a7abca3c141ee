"""Paths: kept inside their root, names that every system takes, and what a stranger's folder may not lead to."""

import os
import re
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path

from sdlora.errors import FileError
from sdlora.formatting import one_line

LONGEST_SLUG = 64, 192
"""Letters, and bytes of a name on disk: with an ending and a number behind it, it stays below 255."""
PICKLES = frozenset((".ckpt", ".pt", ".pth", ".bin", ".pkl"))
"""Endings of files that can run code when they are opened: none is ever read."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def default_data_dir() -> Path:
    """Where runs and caches go unless told otherwise: ``$SDLORA_DATA_DIR``, or ``sdlora`` in the home folder."""
    return Path(os.environ.get("SDLORA_DATA_DIR") or Path.home() / "sdlora")


def data_root(data_dir: Path | None) -> Path:
    """``data_dir``, or the usual one, with ``~`` expanded. Raises FileError for a name that no folder can have."""
    return as_path(data_dir or default_data_dir())


def as_path(name: str | Path, folder: Path = Path()) -> Path:
    """``name``, relative to ``folder``, with ``~`` expanded; nothing need be there.

    Raises FileError for a name that no file can have: too long, with a NUL, or in an unknown user's home.
    """
    try:
        path = folder / Path(name).expanduser()
        for place in (path, *(Path(path.anchor, part) for part in path.parts)):  # A missing folder hides what follows.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                place.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise FileError(f"{name}: cannot be a file's name ({reason}); choose another") from None
    return path


def existing_path(name: str | Path, folder: Path = Path()) -> Path | None:
    """``as_path``, or None where nothing is, can be, or may be seen."""
    try:
        path = as_path(name, folder)
        return path if path.exists() else None
    except (FileError, PermissionError):
        return None


def path_inside(root: Path, name: str | Path) -> Path:
    """``root / name``, resolved. Raises FileError if that lies outside ``root``, or can lie nowhere."""
    try:
        resolved = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # A loop of links, or a NUL.
        raise FileError(f"{one_line(name)}: cannot be a file's name ({error}); choose another") from None
    if not resolved.is_relative_to(root.resolve()):
        raise FileError(f"{one_line(name)}: lies outside {root}")
    return resolved


def path_problem(path: Path, root: Path) -> str:
    """Why ``path`` is no file or folder of ``root``'s own, links followed; empty if it is one.

    A stranger's folder may link to anything that its reader may see, or hold a pipe, which would be waited for. The
    files of a hub's repository are links into its cache: there, the repository is the root.
    """
    home = root.resolve()
    snapshots = (place.parent for place in (home, *home.parents) if place.parent.name == "snapshots")
    home = next((place.parent for place in snapshots if place.parent.name.startswith("models--")), home)
    try:
        if not path.resolve().is_relative_to(home):
            return f"is a link out of {root}; put the file itself there"
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or 'a loop of links'})"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is no regular file"


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file name that every system takes: letters, digits, ``.``, ``_``, ``-``; at most 64 of them, in 192 bytes."""
    letters, most = LONGEST_SLUG
    slug = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFKC", text)).strip("-._")[:letters]
    slug = slug.encode()[:most].decode(errors="ignore").rstrip("-._")
    stem, dot, rest = slug.partition(".")
    if stem.lower() in _RESERVED:  # With any ending.
        slug = f"{stem}-1{dot}{rest}"
    return slug or fallback


def unused_path(path: Path) -> Path:
    """``path``, or ``name-2``, ``name-3``, ... beside it: never one that exists. A file keeps its suffix.

    Raises FileError if the name is too long.
    """
    path = candidate = as_path(path)
    number = 1
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    while os.path.lexists(candidate):  # A link that leads nowhere has the name too.
        number += 1
        candidate = as_path(path.with_name(f"{stem}-{number}{suffix}"))
    return candidate
