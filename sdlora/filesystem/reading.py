"""Bounded reading of text and JSON files, their checksums, and lists of folders that others may change meanwhile."""

import errno
import fnmatch
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdlora.errors import FileError, FormatError
from sdlora.formatting import format_bytes

CLOCKS_DIFFER_NS = 60_000_000_000
"""Nanoseconds by which clocks of machines that share a folder may differ."""
MAX_JSON_BYTES = 4 << 20
"""Limit for files that describe others, such as configs; data files are never read as a whole."""


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Return the UTF-8 text of a regular file of at most ``max_bytes``.

    Raises FileError if it cannot be read, FormatError if it is larger, or not text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{path}: cannot be read (is no file)")
        if status.st_size > max_bytes:
            raise FormatError(f"{path}: has {format_bytes(status.st_size)}, too much for what it should say")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is no text in UTF-8") from None


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from a stranger. Raises ValueError for any other text.

    Half a surrogate pair, which JSON can spell, is no text that can be written or sent.
    """
    try:
        value = json.loads(text)
        if ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the content of a JSON file. Raises as ``read_text`` does, and FormatError for malformed JSON."""
    try:
        return parse_json(read_text(path, max_bytes))
    except ValueError:
        raise FormatError(f"{path}: is no JSON") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recency(nanoseconds: int) -> tuple[bool, int]:
    """Return a key by which times sort, the newest last.

    What claims to be from the future comes first: it was made while a clock was wrong, here or on another machine, and
    would hide everything new until then.
    """
    return nanoseconds <= time.time_ns() + CLOCKS_DIFFER_NS, nanoseconds


def modified_ns(path: Path) -> int:
    """Return when ``path`` was last changed, in nanoseconds since the epoch; 0 if it is gone by now."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def find_matching(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield what matches the glob ``pattern`` in ``folder``; nothing from folders that are gone by then, or hidden.

    Raises FileError if a folder cannot be read for another reason: it is not empty.
    """
    first, separator, rest = pattern.partition("/")
    try:
        names = fnmatch.filter(os.listdir(folder), first)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP):
            return
        raise FileError(f"{folder}: cannot be read ({error.strerror})") from error
    for path in (folder / name for name in names):
        if rest:
            yield from find_matching(path, rest)
        elif not separator or path.is_dir():
            yield path


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth below ``folder``, but for folders that are gone by then, hidden, or links."""
    return (Path(root, name) for root, _, names in os.walk(folder) for name in names)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links, and what is gone by then, count nothing."""
    try:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return sum(map(size_of, files_below(path)))
        return 0 if stat.S_ISLNK(status.st_mode) else status.st_size
    except OSError:
        return 0
