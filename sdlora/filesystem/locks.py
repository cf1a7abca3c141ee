"""Locks between processes and threads, which end with the process that holds them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdlora.errors import BusyError, FileError
from sdlora.filesystem.writing import file_errors

FOREVER = -1
"""Timeout of ``hold_lock`` that never expires."""
PATIENCE = 60.0
"""Seconds that ``exclusive`` waits. Most changes take milliseconds; to move a run to another disk, it is copied."""
POLL_SECONDS = 0.01
"""Seconds between two looks at a lock that another one holds."""


def hold_lock(lock_file: Path, what: str, wait: float = 0, make_folder: bool = True) -> FileLock:
    """Take an OS lock that dies with its holder.

    Raises BusyError if another process has it after ``wait`` seconds, FileError if it cannot be written.
    """
    lock = FileLock(lock_file)
    _acquire(lock, what, wait, make_folder)
    return lock


def is_held(lock_file: Path) -> bool:
    """Return whether a process has this lock. Needs no right to write, and makes no file where there is none."""
    if os.name == "nt":
        if lock_file.is_symlink() or not lock_file.is_file():
            return False
        try:
            hold_lock(lock_file, "it").release()
        except BusyError:
            return True
        return False
    import fcntl

    try:
        handle = os.open(lock_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # A pipe would be waited for.
    except OSError:  # None there, a link, or hidden from this user.
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # Shared: two that look do not see each other.
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Be alone with ``folder`` among all processes and threads that change it within this context.

    Whatever looks first and acts on what it saw stands in it: free numbers, undo steps, captions that are read and
    rewritten. A thread may enter it again. The lock is a file beside the folder, and stays when the folder goes.
    Raises BusyError if another one does not end, FileError if the lock cannot be written, or for an OSError within.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)
    _acquire(lock, str(folder), PATIENCE)
    try:
        with file_errors(folder, "read or written"):
            yield
    finally:
        lock.release()


def _acquire(lock: FileLock, what: str, wait: float, make_folder: bool = True) -> None:
    lock_file = Path(lock.lock_file)
    if lock_file.is_symlink():  # What it leads to would be emptied.
        raise FileError(f"{lock_file}: is a link; remove it")
    try:
        if make_folder:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait, poll_interval=POLL_SECONDS)
    except Timeout:
        raise BusyError(f"{what} is in use by another process; wait for it, or stop it first") from None
    except OSError as error:
        raise FileError(f"{lock_file}: cannot be written ({error.strerror}); choose another --data-dir") from error
