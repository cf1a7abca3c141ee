"""Files that survive: atomic writes, paths kept inside their root, safe names, a safetensors header read with care."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora import faults
from sdlora.errors import FileError, FormatError

TEMPORARY = ".tmp-"
"""How names begin of what is being written and not yet in its place."""
MAX_HEADER_BYTES = 8 << 20
PICKLES = frozenset((".ckpt", ".pt", ".pth", ".bin", ".pkl"))
"""Endings of files that can run code when they are opened: none is ever read."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def default_data_dir() -> Path:
    """Where runs and caches go unless told otherwise: ``$SDLORA_DATA_DIR``, or ``sdlora`` in the home folder."""
    return Path(os.environ.get("SDLORA_DATA_DIR") or Path.home() / "sdlora")


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Write ``path`` whole or not at all, by a temporary file beside it and a rename.

    ``write`` is the content, or a function that writes it to the path it is given.
    Raises FileError where the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        faults.point("file.begun")
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        faults.point("file.written")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        faults.point("file.flushed")
        os.replace(temporary, path)
        faults.point("file.renamed")
        fsync_folder(path.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def pack_folder(folder: Path, output: Path) -> None:
    """Write the zip file ``output`` of a ``folder``. Stored, not deflated: weights hardly shrink."""

    def pack(place: Path) -> None:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, Path(folder.name) / path.relative_to(folder))

    write_atomic(output, pack)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def existing(name: str | Path, folder: Path = Path()) -> Path | None:
    """``as_path``, or None where nothing is, can be, or may be seen."""
    try:
        path = as_path(name, folder)
        return path if path.exists() else None
    except (FileError, PermissionError):
        return None


def inside(root: Path, name: str | Path) -> Path:
    """``root / name``, resolved. Raises FileError if that lies outside ``root``."""
    resolved = (root / name).resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise FileError(f"{name}: lies outside {root}")
    return resolved


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file name that every system takes: letters, digits, ``.``, ``_``, ``-``; at most 64 characters."""
    plain = unicodedata.normalize("NFKC", text)
    slug = re.sub(r"[^\w.-]+", "-", plain).strip("-._")[:64].rstrip("-._")
    if slug.split(".")[0].lower() in _RESERVED:
        slug = f"{slug}-1"
    return slug or fallback


def unused(path: Path) -> Path:
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


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_space(folder: Path, needed: int) -> None:
    """Raises FileError if fewer than ``needed`` bytes are free where ``folder`` lies, or will lie."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise FileError(f"{folder}: free {(needed - free) / 1e6:.0f} MB on this disk, then start again")


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, read without touching its tensors.

    Raises FileError if the file cannot be read, FormatError if it is no whole safetensors file.
    """
    if path.exists() and not path.is_file():  # A pipe would be waited for.
        raise FileError(f"{path}: cannot be read (is no file)")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise FormatError(f"{path}: is not a safetensors file, or is cut short")
            if length > MAX_HEADER_BYTES:
                raise FormatError(
                    f"{path}: its header of {length >> 20} MB is over the allowed {MAX_HEADER_BYTES >> 20}"
                )
            header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: is not a safetensors file (its header is no JSON)") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: is not a safetensors file (its header is no JSON object)")
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        raise FormatError(f"{path}: is not a safetensors file (its header is damaged)") from None
    if max(ends, default=0) != size - 8 - length:
        raise FormatError(f"{path}: is cut short, or has bytes beyond its last tensor")
    return header
