"""Requests for pictures, laid before the process that holds a device: a folder of files beside the device's lock.

    ID.lock      held by who asks for as long as it wants an answer; it dies with its process
    ID.asked     the request as JSON; the device's holder renames it to
    ID.taken     while it draws, and back if it cannot finish. Gone: nobody wants it any more
    ID.answers   what the holder says, a line of JSON each

One process at a time reads the requests: the holder of the device's lock. Whatever it leaves behind when it is killed
is found by the next holder, or by who asked, once the lock is free. Needs no torch.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock

from sdlora.errors import BusyError, FileError
from sdlora.filesystem.writing import write_atomic
from sdlora.inference.generation_request import GenerationRequest, State
from sdlora.storage.locks import hold_lock

ASKED, TAKEN, ANSWERS, LOCK = ".asked", ".taken", ".answers", ".lock"
LOCK_SECONDS = 1.0
"""For an inquiry's own lock: a holder that looks whether it is alive has it for a moment."""


@dataclass(frozen=True)
class RequestStatus:
    """Where a request stands, as a ``JobStatus`` says it. ``pictures`` are names in the folder of creations."""

    state: State
    message: str = ""
    done: int | None = None
    total: int | None = None
    """Sampling steps done, and in all; None: as said before."""
    pictures: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: bytes) -> "RequestStatus":
        """Raises ValueError for a line that is no answer."""
        values = json.loads(line)
        if not isinstance(values, dict) or "state" not in values:
            raise ValueError(f"not an answer: {line[:80]!r}")
        known = {name: value for name, value in values.items() if name in {field.name for field in fields(cls)}}
        return cls(**known | {"pictures": tuple(map(str, known.get("pictures", ())))})


class SubmittedRequest:
    """A request as who asks sees it: laid down, followed, withdrawn. Leave it by ``close``."""

    def __init__(self, path: Path, request: GenerationRequest):
        self._path = path
        self._lock: FileLock = hold_lock(_file(path, LOCK), "this request", LOCK_SECONDS)
        self._read = 0
        try:
            write_atomic(_file(path, ASKED), request.model_dump_json())
        except FileError:
            self.close()
            raise

    def answers(self) -> Iterator[RequestStatus]:
        """What the holder has said since the last call."""
        with suppress(FileNotFoundError), open(_file(self._path, ANSWERS), "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                with suppress(ValueError, TypeError):  # A line cut short by a crash, or another version's.
                    yield RequestStatus.parse(line)

    def withdraw(self) -> bool:
        """Whether the request was still with its asker. If not, its holder finds it gone and says how it ended."""
        if _gone(_file(self._path, ASKED)):
            return True
        _gone(_file(self._path, TAKEN))
        return False

    def close(self) -> None:
        """Clear the request away."""
        _clear(self._path)
        self._lock.release()


class ReceivedRequest:
    """A request as the device's holder sees it, taken to be drawn."""

    def __init__(self, path: Path, request: GenerationRequest):
        self._path = path
        self.name = path.name
        self.request = request

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it: who asked has not withdrawn it, and lives."""
        return _file(self._path, TAKEN).exists() and _held(_file(self._path, LOCK))

    def tell(self, answer: RequestStatus) -> None:
        """Say how it goes. Raises FileError where that cannot be written."""
        try:
            with open(_file(self._path, ANSWERS), "ab", buffering=0) as file:
                file.write(json.dumps(asdict(answer)).encode() + b"\n")
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written ({error.strerror})") from error

    def finish(self, answer: RequestStatus) -> None:
        """Say how it ended, and be done with it."""
        self.tell(answer)
        _gone(_file(self._path, TAKEN))

    def give_back(self, reason: str) -> None:
        """Leave it to who asked, or to the device's next holder, and say why."""
        self.tell(RequestStatus("waiting", reason, done=0, total=0))
        try:
            os.rename(_file(self._path, TAKEN), _file(self._path, ASKED))
        except FileNotFoundError:  # Withdrawn at this moment.
            self.tell(RequestStatus("cancelled"))


class DeviceRequests:
    """The requests that wait for one device's holder."""

    def __init__(self, lock_file: Path):
        self.folder = lock_file.with_suffix(".requests")

    def submit(self, request: GenerationRequest) -> SubmittedRequest:
        """Lay ``request`` down. Raises FileError where that cannot be written."""
        name = f"{time.time_ns():020}-{os.getpid()}-{threading.get_ident()}"
        return SubmittedRequest(self.folder / name, request)

    def open(self) -> None:
        """To be called by a new holder of the device: takes over what its predecessor, killed, had taken.

        What is left of requests whose askers have died is cleared away. Raises FileError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in {_request_of(file) for file in self.folder.iterdir()}:
                if not _held(_file(path, LOCK)):
                    _clear(path)
                    continue
                with suppress(FileNotFoundError):
                    os.rename(_file(path, TAKEN), _file(path, ASKED))
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be read ({error.strerror})") from error

    def take(self, passed: frozenset[str] | set[str] = frozenset()) -> ReceivedRequest | None:
        """The oldest request that somebody waits for, but for those called in ``passed``; None if there is none.

        Looks into one folder, so that it can be called at every step. Raises FileError.
        """
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(ASKED))
            for name in (name.removesuffix(ASKED) for name in names):
                if name not in passed and (errand := self._take(self.folder / name)):
                    return errand
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be read ({error.strerror})") from error
        return None

    def _take(self, path: Path) -> ReceivedRequest | None:
        """The request at ``path``, unless it was withdrawn, or its asker has died, or it cannot be read."""
        if not _held(_file(path, LOCK)):
            _clear(path)
            return None
        try:
            os.rename(_file(path, ASKED), _file(path, TAKEN))
        except FileNotFoundError:
            return None
        try:
            return ReceivedRequest(path, GenerationRequest.model_validate_json(_file(path, TAKEN).read_bytes()))
        except ValueError:
            ReceivedRequest(path, GenerationRequest()).finish(
                RequestStatus("failed", "The request could not be read; send it again.")
            )
            return None


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _request_of(file: Path) -> Path:
    """The request that one of its files belongs to. IDs hold no dots."""
    return file.with_name(file.name.partition(".")[0])


def _held(lock_file: Path) -> bool:
    """Whether a living process holds ``lock_file``. Makes no file where there is none."""
    if not lock_file.exists():
        return False
    try:
        hold_lock(lock_file, "this request").release()
    except BusyError:
        return True
    return False


def _gone(file: Path) -> bool:
    """Remove ``file``; whether it was there."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _clear(path: Path) -> None:
    for suffix in (ASKED, TAKEN, ANSWERS, LOCK):
        with suppress(OSError):  # Windows keeps a file that another process reads: the next holder clears it away.
            _file(path, suffix).unlink()
