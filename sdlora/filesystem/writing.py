"""Atomic writes: a temporary file beside the target, then a rename.

``write_atomic`` replaces what has the name; nothing else here does. Where a name is taken, even at this moment by
another process, ``write_exclusive`` and ``rename_new`` refuse, and ``write_new``, ``new_folder`` and ``move_new`` take
the next number. Look and act are one step of the system. Whichever step a process is killed after, what has a name is
whole; at most something called ``.tmp-...`` remains.
"""

import errno
import filecmp
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from sdlora import failpoints
from sdlora.errors import FileError
from sdlora.filesystem.paths import numbered_paths
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


@contextmanager
def file_errors(path: Path, done: str = "written") -> Iterator[None]:
    """Raise FileError, which names the file and what cannot be ``done`` with it, for an OSError within this context."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or path  # A rename's second is the one that is in the way.
        raise FileError(f"{name}: cannot be {done} ({error.strerror or error})") from error


def write_atomic(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Write ``path`` completely or not at all.

    ``write`` is the content, or a function that writes it to a given path. Raises FileError if the folder cannot be
    written or the disk is full.
    """
    with _written(path, write) as temporary:
        os.replace(temporary, path)


def write_exclusive(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Write a file as ``write_atomic`` does. Raises FileError too if it exists, or does so by then."""

    def place(temporary: Path) -> Path:
        rename_new(temporary, path)
        return path

    _write_and_place(path, write, place)


def write_new(path: Path, write: Callable[[Path], None] | bytes | str) -> Path:
    """Write a file as ``write_atomic`` does, under ``path`` or the first free number beside it, and return its path."""
    return _write_and_place(path, write, lambda temporary: _claim(path, partial(rename_new, temporary)))


def _write_and_place(path: Path, write: Callable[[Path], None] | bytes | str, place: Callable[[Path], Path]) -> Path:
    """Write a file; ``place`` gives it a new name, which is taken back if it cannot be made durable."""
    with file_errors(path), ExitStack() as undo:
        with _written(path, write) as temporary:
            placed = place(temporary)
            undo.callback(placed.unlink, missing_ok=True)
        undo.pop_all()
    return placed


def new_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Make the folder ``path``, or the first free number beside it, completely or not at all, and return its path.

    ``fill`` writes what is in it, into a folder of another name. Raises FileError, and whatever ``fill`` raises.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        with file_errors(path), ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            fill(temporary)
            path = _claim(path, partial(rename_new, temporary), is_folder=True)
            undo.callback(shutil.rmtree, path, ignore_errors=True)
            fsync_folder(path.parent)
            undo.pop_all()
    except FileError as error:
        raise FileError(str(error).replace(str(temporary), str(path))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def move_new(source: Path, path: Path) -> Path:
    """Move a file or a folder to ``path``, or to the first free number beside it, and return its path. Raises OSError.

    To another file system it is copied, and deleted when the copy is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_folder = source.is_dir()
    try:
        return _claim(path, partial(rename_new, source), is_folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    copy = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        if is_folder:
            shutil.copytree(source, copy, symlinks=True, copy_function=_copy_durably)
        else:
            _copy_durably(source, copy)
        moved = _claim(path, partial(rename_new, copy), is_folder)
        fsync_folder(path.parent)
    except BaseException:
        _remove(copy)
        raise
    remove_whole(source)
    return moved


def remove_whole(path: Path) -> None:
    """Delete a file or a folder. If the process is killed meanwhile, nothing under the name is half there."""
    doomed = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        os.rename(path, doomed)
        _remove(doomed)


def _copy_durably(source: str | Path, target: str | Path) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    if not os.path.islink(target):
        with open(target, "rb+") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or a folder. Raises FileExistsError if ``target`` exists, whatever it is: it is never replaced.

    Only an empty folder is, by a folder: it holds nothing, and making it first would leave it if this were killed.
    """
    if os.name == "nt":
        os.rename(source, target)  # Refuses by itself.
    elif source.is_dir() and not source.is_symlink():
        try:
            os.rename(source, target)  # POSIX replaces a folder that is empty, and nothing else.
        except OSError as error:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
            raise
    else:
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            if not is_same_file(source, target):
                raise
            os.unlink(source)  # Who renamed it was killed before this.
        except OSError as error:  # A file system without links, such as exFAT.
            if error.errno == errno.EXDEV:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(source, target)
        else:
            try:
                os.unlink(source)
            except OSError:
                with suppress(OSError):
                    os.unlink(target)
                raise


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file that both name, as they do when ``rename_new`` is killed."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def is_copy(one: Path, other: Path) -> bool:
    """Return whether two files or folders are one as a copy of the other: equal in names, contents, links and times.

    Both are there, whole, if ``move_new`` is killed between file systems before the source goes.
    """
    found, same = _entries(one), _entries(other)
    if found != same:
        return False
    files = [name for name, (kind, *_) in found.items() if stat.S_ISREG(kind)]
    return bool(found) and all(filecmp.cmp(one / name, other / name, shallow=False) for name in files)


def _entries(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return kind, size, time and link of all that ``root`` is or holds, by path; empty if it is not there."""
    found = {}
    with suppress(OSError):
        for path in (root, *(sorted(root.rglob("*")) if root.is_dir() and not root.is_symlink() else ())):
            status = path.lstat()
            kind, is_file = stat.S_IFMT(status.st_mode), stat.S_ISREG(status.st_mode)
            link = os.readlink(path) if path.is_symlink() else ""
            facts = (kind, status.st_size if is_file else 0, status.st_mtime_ns if is_file else 0, link)
            found[path.relative_to(root).as_posix()] = facts
    return found


def _claim(path: Path, make: Callable[[Path], None], is_folder: bool = False) -> Path:
    """Return the first path, ``path`` or one with a number, at which ``make`` does not meet something that exists."""
    for candidate in numbered_paths(path, is_folder):
        with suppress(FileExistsError):
            make(candidate)
            return candidate
    raise AssertionError("numbers do not end")


@contextmanager
def _written(path: Path, write: Callable[[Path], None] | bytes | str) -> Iterator[Path]:
    """Write a temporary file for ``path``, flushed to the disk; the block renames it, which is then made durable."""
    with file_errors(path), ExitStack() as cleanup:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, mode = _new_temporary(path)
        cleanup.callback(temporary.unlink, missing_ok=True)
        failpoints.point("file.begun")
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        failpoints.point("file.written")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # ``write`` may have put another file there.
        failpoints.point("file.flushed")
        yield temporary
        failpoints.point("file.renamed")
        fsync_folder(path.parent)


def _new_temporary(path: Path) -> tuple[Path, int]:
    """Make an empty file beside ``path``; return it with its permissions, those that the user's umask gives."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return temporary, os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


def pack_folder(folder: Path, output: Path) -> None:
    """Write ``folder`` as the new zip file ``output``, without compression: weights hardly shrink. Raises FileError."""

    def pack(target: Path) -> None:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, Path(folder.name) / path.relative_to(folder))

    write_exclusive(output, pack)


def require_free_space(folder: Path, needed: int) -> None:
    """Raise FileError if fewer than ``needed`` bytes are free on the disk of ``folder``, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise FileError(f"{folder}: free {format_bytes(needed - free)} on this disk, then start again")
