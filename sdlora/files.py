"""Files that survive: atomic writes, paths kept inside their root, safe names, a safetensors header read with care."""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora import faults
from sdlora.errors import FileError, FormatError, shown

TEMPORARY = ".tmp-"
"""How names begin of what is being written and not yet in its place."""
MAX_HEADER_BYTES = 8 << 20
MAX_JSON_BYTES = 4 << 20
"""Of files that say how something is to be read; those that hold something are never read as a whole."""
LONGEST_NAME = 500
"""Letters of a tensor's name: the longest real one has about 150."""
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
        raise FileError(f"{shown(name)}: cannot be a file's name ({error}); choose another") from None
    if not resolved.is_relative_to(root.resolve()):
        raise FileError(f"{shown(name)}: lies outside {root}")
    return resolved


def why_foreign(path: Path, root: Path) -> str:
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


def read_text(path: Path, most: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text of a regular file of at most ``most`` bytes.

    Raises FileError if it cannot be read, FormatError if it is larger, or no text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{path}: cannot be read (is no file)")
        if status.st_size > most:
            raise FormatError(f"{path}: has {status.st_size / 1e6:.0f} MB, too much for what it should say")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is no text in UTF-8") from None


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file says; raises as ``read_text`` does, and FormatError if it is no JSON, or nested too deeply."""
    try:
        return json.loads(read_text(path, most))
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: is no JSON") from None


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
    odd = next((name for name in header if len(name) > LONGEST_NAME or not name.isprintable()), None)
    if odd is not None:  # It would stand in messages, and cost time wherever it is compared.
        raise FormatError(f"{path}: a tensor has a name that no tool gives: {shown(odd, 60)!r}")
    return header
