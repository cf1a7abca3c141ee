"""Atomic writes: a temporary file beside the target, then a rename."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sdlora import failpoints
from sdlora.errors import FileError
from sdlora.formatting import format_bytes

TEMPORARY = ".tmp-"
"""Prefix of files that are being written."""


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
    """Write ``path`` completely or not at all.

    ``write`` is the content, or a function that writes it to a given path. Raises FileError if the folder cannot be
    written or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        failpoints.point("file.begun")
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        failpoints.point("file.written")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        failpoints.point("file.flushed")
        os.replace(temporary, path)
        failpoints.point("file.renamed")
        fsync_folder(path.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def pack_folder(folder: Path, output: Path) -> None:
    """Write ``folder`` as the zip file ``output``, without compression: weights hardly shrink."""

    def pack(target: Path) -> None:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, Path(folder.name) / path.relative_to(folder))

    write_atomic(output, pack)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_free_space(folder: Path, needed: int) -> None:
    """Raise FileError if fewer than ``needed`` bytes are free on the disk of ``folder``, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise FileError(f"{folder}: free {format_bytes(needed - free)} on this disk, then start again")
