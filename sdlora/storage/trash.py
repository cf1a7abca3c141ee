"""Trash of deleted things, which can be restored until they are thirty days old or the trash is emptied.

DATA_DIR/trash/TIME-NAME/
    item.json    what it was, and where each part lay
    0, 1, ...    the parts, files or folders
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdlora.errors import FileError, SdloraError
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import numbered_paths, path_inside, safe_name
from sdlora.filesystem.reading import find_matching, modified_ns, read_json, size_of
from sdlora.filesystem.writing import (
    file_errors,
    is_copy,
    is_same_file,
    move_new,
    new_folder,
    remove_whole,
    write_atomic,
)
from sdlora.formatting import one_line

KEPT_DAYS = 30
DAY = 86_400.0
LAST = 1 << 36
"""Seconds since the epoch, in the year 4147: a date that a calendar has."""
ITEM, EXPIRED = "item.json", "expired"
"""An item's description, and the file since which it is too old."""


@dataclass(frozen=True)
class TrashItem:
    """An item in the trash."""

    folder: Path
    name: str
    what: str
    """Description, such as ``the run mystyle``."""
    deleted: float
    """Seconds since the epoch."""
    origins: tuple[str, ...]
    """Original paths of its parts, relative to the data folder."""

    @property
    def age(self) -> float:
        """Seconds since it was deleted; 0 if that is to come yet, as clocks are set."""
        return max(0.0, time.time() - self.deleted)

    @property
    def parts(self) -> list[Path]:
        """Its parts, in the order of ``origins``."""
        return [self.folder / str(number) for number in range(len(self.origins))]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return size_of(self.folder)


class Trash:
    """The trash of a data folder."""

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir / "trash"

    def put(self, paths: Sequence[Path], name: str, what: str) -> TrashItem:
        """Move ``paths``, all inside the data folder, into the trash. Raises FileError, and then moves them back."""
        now = time.time()
        with file_errors(self.data_dir, "read"):
            origins = tuple(map(self._origin, paths))
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        fields = {"name": name, "what": what, "deleted": now, "origins": origins}
        note = json.dumps(fields, ensure_ascii=False)
        folder = self.folder / safe_name(f"{stamp}-{name}", fallback=stamp)
        with exclusive(self.folder):  # Who empties the trash finds it with all its parts, or not yet.
            # First: it tells how to undo.
            folder = new_folder(folder, lambda made: write_atomic(made / ITEM, note))
            item = TrashItem(folder, name, what, now, origins)
            try:
                for path, part in reversed(list(zip(paths, item.parts, strict=True))):  # Last the others' owner.
                    move_new(path, part)
            except (OSError, SdloraError) as error:
                with suppress(SdloraError):  # What cannot be moved back now can be restored later.
                    self._move_back(item)
                if isinstance(error, SdloraError):
                    raise
                raise FileError(f"{error.filename}: cannot be moved to the trash ({error.strerror})") from error
        return item

    def items(self) -> list[TrashItem]:
        """List the trash, newest first. A folder without an item, or whose parts are all back, is ignored."""
        return [item for item in self._items() if any(os.path.lexists(part) for part in item.parts)]

    def _items(self) -> list[TrashItem]:
        found = [self._read(path.parent) for path in find_matching(self.folder, f"[!.]*/{ITEM}")]
        return sorted((item for item in found if item), key=lambda item: item.deleted, reverse=True)

    def find(self, folder_name: str) -> TrashItem:
        """Return the item in that folder. Raises FileError if it is gone."""
        item = next((item for item in self.items() if item.folder.name == folder_name), None)
        if item is None:
            raise _gone(folder_name)
        return item

    def restore(self, item: TrashItem) -> list[Path]:
        """Move an item's parts back to where they lay, or beside it where something else lies there by now.

        Parts that were named like the first, such as an adapter's card, are so again. Raises FileError if the item is
        gone, as somebody else has restored it, or a part cannot be moved.
        """
        with self._alone_with(item):
            if not item.folder.is_dir():
                raise _gone(item.folder.name)
            return self._move_back(item)

    def recover(self) -> None:
        """Bring back what a process was moving here, or back from here, when it was killed."""
        for item in filter(self._is_half_moved, self._items()):
            with suppress(SdloraError), self._alone_with(item):
                if self._is_half_moved(item):  # Else somebody has just moved the rest.
                    self._move_back(item)

    def empty(self) -> int:
        """Delete everything in it for good, and return the number of items that are gone."""
        self.recover()
        return self._delete(lambda item: True)

    def forget_old(self, days: float = KEPT_DAYS) -> int:
        """Delete older items for good that were so a day ago already, and return their number.

        A clock that was wrong for a moment, then or when they were deleted, takes nothing at once. What a killed
        process has moved by half is brought back.
        """
        self.recover()
        return self._delete(lambda item: item.age >= days * DAY and _marked_a_day_ago(item.folder / EXPIRED))

    def _delete(self, goes: Callable[[TrashItem], bool]) -> int:
        if not any(goes(item) for item in self.items()):
            return 0  # Nobody has to wait for that.
        with exclusive(self.folder):  # No item goes while it is being restored.
            old = [item for item in self.items() if goes(item)]
            for item in old:
                with suppress(OSError):
                    remove_whole(item.folder)
        return sum(not item.folder.exists() for item in old)

    @contextmanager
    def _alone_with(self, item: TrashItem) -> Iterator[None]:
        """Be alone with the trash and the folders that the parts came from. Raises FileError for paths outside."""
        for origin in item.origins:
            self._place(origin)
        with ExitStack() as locks:
            for room in sorted({Path(origin).parts[0] for origin in item.origins}):  # First, as who deletes has them.
                locks.enter_context(exclusive(self.data_dir / room))
            locks.enter_context(exclusive(self.folder))
            yield

    def _move_back(self, item: TrashItem) -> list[Path]:
        """Do what ``restore`` does, alone with the item. The first part goes last: its name decides the others'."""
        parts = list(zip(item.parts, map(self._place, item.origins), strict=True))
        if not parts:
            return []
        first_part, first = parts[0]
        free = first
        if os.path.lexists(first_part) and not _is_same(first_part, first):
            free = next(path for path in numbered_paths(first, first_part.is_dir()) if not os.path.lexists(path))
        restored: list[Path] = []
        try:
            for part, path in reversed(parts):
                if path.parent == first.parent and path.name.startswith(first.stem):
                    path = path.with_name(free.stem + path.name.removeprefix(first.stem))
                if is_copy(part, path):
                    remove_whole(part)
                    restored.insert(0, path)
                elif os.path.lexists(part):
                    restored.insert(0, move_new(part, path))
        except OSError as error:
            raise FileError(f"{error.filename}: cannot be moved back ({error.strerror})") from error
        with suppress(OSError):
            remove_whole(item.folder)
        return restored

    def _is_half_moved(self, item: TrashItem) -> bool:
        """Return whether a part of the item is not here, or is still where it lay too."""
        try:
            parts = list(zip(item.parts, map(self._place, item.origins), strict=True))
        except FileError:  # Nothing that this program has put here.
            return False
        return any(not os.path.lexists(part) or _is_same(part, origin) for part, origin in parts)

    def _origin(self, path: Path) -> str:
        """Return a path as an item keeps it. Raises FileError if it lies outside the data folder."""
        resolved = path.parent.resolve() / path.name
        linked = (room for room in find_matching(self.data_dir, "*") if room.is_symlink())
        root = next((room for room in (self.data_dir, *linked) if resolved.is_relative_to(room.resolve())), None)
        if root is None:
            raise FileError(f"{path}: lies outside {self.data_dir}")
        origin = (root / resolved.relative_to(root.resolve())).relative_to(self.data_dir).as_posix()
        self._place(origin)
        return origin

    def _place(self, origin: str) -> Path:
        """Return the path of an origin. Raises FileError if it lies outside the data folder.

        A folder right in the data folder, such as ``runs``, may be a link to another disk.
        """
        parts = PurePosixPath(origin).parts
        if not parts or parts[0] != safe_name(parts[0]):
            raise FileError(f"{one_line(origin)}: lies outside {self.data_dir}")
        root = self.data_dir / parts[0]
        return root / path_inside(root, Path(*parts[1:])).relative_to(root.resolve())

    def _read(self, folder: Path) -> TrashItem | None:
        try:
            fields = read_json(folder / ITEM)
            name, what, deleted = str(fields["name"]), str(fields["what"]), float(fields["deleted"])
            whole = 0 <= deleted < LAST
            return TrashItem(folder, name, what, deleted, tuple(map(str, fields["origins"]))) if whole else None
        except (SdloraError, ValueError, KeyError, TypeError):
            return None


def _is_same(part: Path, origin: Path) -> bool:
    """Return whether both are there only because a process was killed while it moved one to the other."""
    return is_same_file(part, origin) or is_copy(part, origin)


def _marked_a_day_ago(mark: Path) -> bool:
    """Return whether ``mark`` was made at least a day ago; make it anew if there is none, or its time is to come."""
    age = (time.time_ns() - modified_ns(mark)) / 1e9 if mark.exists() else -1.0
    if age < 0:
        with suppress(OSError):
            mark.write_bytes(b"")
    return age >= DAY


def _gone(folder_name: str) -> FileError:
    return FileError(f"{folder_name}: is not in the trash any more")
