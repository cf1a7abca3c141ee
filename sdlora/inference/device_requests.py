"""Generation requests to the process that owns a device: a folder of files beside the device's lock.

    ID.lock      locked by the sender for as long as it waits; the lock dies with its process
    ID.asked     the request as JSON; the device's owner renames it to
    ID.taken     while it generates, and back if it cannot finish. Gone: withdrawn
    ID.answers   the owner's events, a line of JSON each

The device's owner is the process that has its lock; it alone reads requests. Whatever it leaves behind when it is
killed is found by the next owner, or by the sender, once the lock is free. Needs no torch.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from sdlora.errors import ConfigError, FileError
from sdlora.events import Cancelled, Event, Failed, Finished, Waiting
from sdlora.filesystem.locks import hold_lock, is_held
from sdlora.filesystem.writing import write_atomic
from sdlora.inference.generation_request import GenerationRequest
from sdlora.storage.journal import tail_events

ASKED, TAKEN, EVENTS, LOCK = ".asked", ".taken", ".answers", ".lock"
NUMBER = re.compile(r"\d{20}")
"""Beginning of an ID: nanoseconds, by which requests are taken in order."""
LOCK_SECONDS = 1.0
"""Seconds to wait for a request's lock: an owner that checks whether the sender lives has it for a moment."""


class SubmittedRequest:
    """A request on its sender's side: submitted, followed, withdrawn. Call ``close`` in the end."""

    def __init__(self, path: Path, request: GenerationRequest):
        self._path = path
        self._lock: FileLock = hold_lock(_file(path, LOCK), "this request", LOCK_SECONDS)
        self._read = 0
        try:
            write_atomic(_file(path, ASKED), request.model_dump_json(exclude_unset=True))
        except FileError:
            self.close()
            raise

    def events(self) -> Iterator[Event]:
        """Yield what the device's owner has reported since the last call."""
        for event, end in tail_events(_file(self._path, EVENTS), self._read):
            self._read = end
            yield event

    def withdraw(self) -> bool:
        """Return whether nobody had taken the request. Who has taken it finds it gone, and reports how it ended."""
        if _remove(_file(self._path, ASKED)):
            return True
        _remove(_file(self._path, TAKEN))
        return False

    def close(self) -> None:
        """Clear the request away."""
        _clear(self._path)
        self._lock.release()


class ReceivedRequest:
    """A request on the side of the device's owner, taken to be generated."""

    def __init__(self, path: Path, request: GenerationRequest):
        self._path = path
        self.name = path.name
        self.request = request

    @property
    def wanted(self) -> bool:
        """Return whether its sender lives and has not withdrawn it."""
        return _file(self._path, TAKEN).exists() and is_held(_file(self._path, LOCK))

    def report(self, event: Event) -> None:
        """Report how it goes. Raises FileError where that cannot be written."""
        try:
            with open(_file(self._path, EVENTS), "ab", buffering=0) as file:
                file.write(event.to_json().encode() + b"\n")
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written ({error.strerror})") from error

    def finish(self, event: Finished | Cancelled | Failed) -> None:
        """Report how it ended, and clear it away."""
        self.report(event)
        _remove(_file(self._path, TAKEN))

    def give_back(self, reason: str) -> None:
        """Leave it to its sender, or to the device's next owner, and report why."""
        self.report(Waiting(message=reason))
        try:
            os.rename(_file(self._path, TAKEN), _file(self._path, ASKED))
        except FileNotFoundError:  # Withdrawn at this moment.
            self.report(Cancelled())


class DeviceRequests:
    """The requests that wait for the owner of one device."""

    def __init__(self, lock_file: Path):
        self.folder = lock_file.with_suffix(".requests")

    def submit(self, request: GenerationRequest) -> SubmittedRequest:
        """Write ``request`` down. Raises FileError where that cannot be done."""
        last = 0
        with suppress(FileNotFoundError):  # A clock that was set back puts none in front.
            numbers = [name.partition("-")[0] for name in os.listdir(self.folder)]
            last = max((int(number) for number in numbers if NUMBER.fullmatch(number)), default=0)
        name = f"{max(time.time_ns(), last + 1):020}-{os.getpid()}-{threading.get_ident()}"
        return SubmittedRequest(self.folder / name, request)

    def open(self) -> None:
        """Take over what the device's last owner, killed, had taken; call this as a new owner.

        What remains of requests whose senders have died is cleared away. Raises FileError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {file.name.partition(".")[0] for file in self.folder.iterdir()}  # IDs have no dots.
            for path in (self.folder / name for name in names):
                if not is_held(_file(path, LOCK)):
                    _clear(path)
                    continue
                with suppress(FileNotFoundError):
                    os.rename(_file(path, TAKEN), _file(path, ASKED))
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be read ({error.strerror})") from error

    def take(self, passed: frozenset[str] | set[str] = frozenset()) -> ReceivedRequest | None:
        """Take the oldest request whose sender waits, but for those named in ``passed``; None if there is none.

        Lists one folder, so that it can be called at every step. Raises FileError.
        """
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(ASKED))
            for name in (name.removesuffix(ASKED) for name in names):
                if name not in passed and (request := self._take(self.folder / name)):
                    return request
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be read ({error.strerror})") from error
        return None

    def _take(self, path: Path) -> ReceivedRequest | None:
        """Take the request at ``path``, unless it was withdrawn, its sender has died, or it cannot be read."""
        if not is_held(_file(path, LOCK)):
            _clear(path)
            return None
        try:
            os.rename(_file(path, ASKED), _file(path, TAKEN))
        except FileNotFoundError:
            return None
        try:
            return ReceivedRequest(path, GenerationRequest.model_validate_json(_file(path, TAKEN).read_bytes()))
        except (ValueError, ConfigError):
            ReceivedRequest(path, GenerationRequest()).finish(
                Failed(message="The request could not be read; send it again.", exit_code=ConfigError.exit_code)
            )
            return None


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(file: Path) -> bool:
    """Remove ``file``; return whether it was there."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _clear(path: Path) -> None:
    for suffix in (ASKED, TAKEN, EVENTS, LOCK):
        with suppress(OSError):  # Windows keeps a file that another process reads: the next owner clears it away.
            _file(path, suffix).unlink()
