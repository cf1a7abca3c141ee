"""Paths: names that every system accepts, and checks that untrusted ones stay inside their root."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from sdlora.errors import FileError
from sdlora.formatting import one_line

LONGEST_NAME = 64, 192
"""Characters and bytes of a file name: with a suffix and a number it stays below the 255 bytes of file systems."""
PICKLES = frozenset((".ckpt", ".pt", ".pth", ".bin", ".pkl"))
"""Suffixes of files that can run code when they are opened: none is ever read."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def default_data_dir() -> Path:
    """Return the default folder of runs and caches: ``$SDLORA_DATA_DIR``, or ``sdlora`` in the home folder."""
    return Path(os.environ.get("SDLORA_DATA_DIR") or Path.home() / "sdlora")


def data_root(data_dir: Path | None) -> Path:
    """Return ``data_dir``, or the default one, with ``~`` expanded. Raises FileError for an impossible name."""
    return as_path(data_dir or default_data_dir())


def trimmed_name(name: str) -> str:
    """Return a name without spaces and dots at its end: Windows drops them, zips and people bring them."""
    return name.rstrip(" .") or name


def as_path(name: str | Path, folder: Path = Path()) -> Path:
    """Return ``name``, relative to ``folder``, with ``~`` expanded; the path need not exist.

    Parts that do not exist are without spaces and dots at their ends (``trimmed_name``). Raises FileError for an
    impossible name: too long, with a NUL, or in an unknown user's home.
    """
    try:
        path = _trimmed_path(folder / Path(name).expanduser())
        for part in (path, *(Path(path.anchor, part) for part in path.parts)):  # A missing folder hides the rest.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                part.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise FileError(f"{name}: cannot be a file's name ({reason}); choose another") from None
    return path


def _trimmed_path(path: Path) -> Path:
    if all(part == trimmed_name(part) for part in path.parts) or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        found /= part if os.path.lexists(found / part) else trimmed_name(part)
    return found


def existing_path(name: str | Path, folder: Path = Path()) -> Path | None:
    """Return ``as_path``, or None if nothing exists there, the name is impossible, or access is denied."""
    try:
        path = as_path(name, folder)
        return path if path.exists() else None
    except (FileError, PermissionError):
        return None


def path_inside(root: Path, name: str | Path) -> Path:
    """Return ``root / name``, resolved. Raises FileError if it lies outside ``root``, or the name is impossible."""
    try:
        resolved = (root / name).resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            resolved.lstat()
    except (OSError, RuntimeError, ValueError) as error:  # A loop of links, a NUL, or too long.
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"{one_line(name)}: cannot be a file's name ({reason}); choose another") from None
    if not resolved.is_relative_to(root.resolve()):
        raise FileError(f"{one_line(name)}: lies outside {root}")
    return resolved


def path_problem(path: Path, root: Path) -> str:
    """Return why ``path`` is no regular file or folder inside ``root``, links followed; empty if it is one.

    An untrusted folder may link to anything that its reader can see, or hold a pipe, which would block. Files of a hub
    repository are links into its cache: the repository counts as their root.
    """
    home = root.resolve()
    snapshots = (folder.parent for folder in (home, *home.parents) if folder.parent.name == "snapshots")
    home = next((folder.parent for folder in snapshots if folder.parent.name.startswith("models--")), home)
    try:
        if not path.resolve().is_relative_to(home):
            return f"is a link out of {root}; put the file itself there"
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or 'a loop of links'})"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is no regular file"


def composed(name: str) -> str:
    """Return ``name`` with composed letters, as most systems write them: macOS stores ``e`` and its accent apart."""
    return unicodedata.normalize("NFC", name)


def safe_name(text: str, fallback: str = "untitled") -> str:
    """Return ``text`` as a portable file name: letters, digits, ``.``, ``_``, ``-``; at most 64, in 192 bytes."""
    letters, size = LONGEST_NAME
    slug = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFKC", text)).strip("-._")[:letters]
    slug = slug.encode()[:size].decode(errors="ignore").rstrip("-._")
    stem, dot, rest = slug.partition(".")
    if stem.lower() in _RESERVED:  # With any suffix.
        slug = f"{stem}-1{dot}{rest}"
    return slug or fallback


def numbered_paths(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yield ``path``, ``name-2``, ``name-3``, ... beside it without end. A file keeps its suffix.

    Which of them is free, only making it can tell: ``writing.write_new``, ``new_folder`` and ``move_new`` do.
    Raises FileError if the name is too long.
    """
    path = as_path(path)
    stem, suffix = (path.name, "") if is_folder else (path.stem, path.suffix)
    yield path
    for number in count(2):
        yield as_path(path.with_name(f"{stem}-{number}{suffix}"))
