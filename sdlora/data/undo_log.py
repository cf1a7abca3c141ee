"""Undo log of a project's images, captions and masks, in `FOLDER/.history/NNNNNN/`.

A step's `step.json` names the removed files, which lie beside it, captions before and after, and masks that were put in
place. It is written before a file moves, so that a crash in between loses nothing. Whoever records or undoes a step is
alone with the project (``filesystem.locks.exclusive``).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from sdlora.data.masks import MASK_SUFFIX
from sdlora.errors import FileError, FormatError
from sdlora.filesystem.paths import path_inside
from sdlora.filesystem.reading import find_matching, read_json, sha256
from sdlora.filesystem.writing import file_errors, move_new, write_atomic

STEP = "step.json"
"""Name of the description of a step, beside the files that it removed."""
MAX_STEPS = 100
"""Number of steps that can be undone; files that older steps removed are deleted for good."""
MAX_STEP_BYTES = 64 << 20
"""Largest description: a thousand captions of 10 kB each, before and after, and a margin."""
NO_CAPTIONS: Mapping[Path, tuple[str, str]] = {}
NO_MASKS: Mapping[Path, str] = {}


@dataclass(frozen=True)
class UndoStep:
    """One change: its description, and the files removed, captions changed and masks put in place, by paths below the
    project.
    """

    what: str
    files: tuple[str, ...] = ()
    captions: tuple[tuple[str, str, str], ...] = ()
    """Image, caption before, caption after."""
    masks: tuple[tuple[str, str], ...] = ()
    """File ``NAME.mask.png``, SHA-256 of its content."""


class RecordedStep(NamedTuple):
    """A step of the log, and the folder that it was written to."""

    folder: Path
    step: UndoStep


class UndoLog:
    """Steps of one project."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.steps_folder = folder / ".history"

    def newest(self) -> UndoStep | None:
        """Return the step that ``undo_newest`` would undo; None if that cannot be read."""
        with suppress(FileError, OSError):
            found = self._newest()
            return found[1] if found else None
        return None

    def numbers(self) -> set[int]:
        """Return the numbers of images that may come back, which no new image may take."""
        return {int(path.stem) for path in find_matching(self.steps_folder, "*/*") if path.stem.isdecimal()}

    def record(
        self,
        what: str,
        files: Sequence[Path] = (),
        captions: Mapping[Path, tuple[str, str]] = NO_CAPTIONS,
        masks: Mapping[Path, str] = NO_MASKS,
    ) -> RecordedStep:
        """Record a step, and move ``files`` out of the project. Raises FileError if it cannot be written.

        ``masks``, by their SHA-256, are put in place by the caller.
        """
        names = tuple(path.relative_to(self.folder).as_posix() for path in files)
        changed = tuple((path.relative_to(self.folder).as_posix(), *both) for path, both in captions.items())
        steps = self._steps()
        folder = self.steps_folder / f"{int(steps[-1].name) + 1 if steps else 1:06d}"
        with file_errors(self.folder), ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            recorded = _write_step(folder, UndoStep(what, names, changed, self._digests(masks)))
            undo.pop_all()
            _move_out(files, folder)
        for old in steps[: -(MAX_STEPS - 1) or None] if len(steps) >= MAX_STEPS else []:
            shutil.rmtree(old, ignore_errors=True)
        return recorded

    def extend(
        self,
        recorded: RecordedStep | None,
        what: str,
        captions: Mapping[Path, tuple[str, str]] = NO_CAPTIONS,
        files: Sequence[Path] = (),
        masks: Mapping[Path, str] = NO_MASKS,
    ) -> RecordedStep:
        """Add changes to a step as ``record`` does; its description becomes ``what``.

        Without a step, if it was undone meanwhile, or if it has removed a file of the same name, a new one is recorded.
        """
        if recorded is None or _read_step(recorded.folder) != recorded.step:  # Its number may be another step's by now.
            return self.record(what, files, captions, masks)
        if {Path(name).name for name in recorded.step.files} & {path.name for path in files}:
            return self.record(what, files, captions, masks)  # Removed files lie side by side.
        both = {name: (old, new) for name, old, new in recorded.step.captions}
        for path, (old, new) in captions.items():
            name = path.relative_to(self.folder).as_posix()
            both[name] = (both.get(name, (old,))[0], new)
        changed = tuple((name, *texts) for name, texts in both.items())
        names = (*recorded.step.files, *(path.relative_to(self.folder).as_posix() for path in files))
        placed = (*recorded.step.masks, *self._digests(masks))
        with file_errors(self.folder):
            extended = _write_step(recorded.folder, UndoStep(what, names, changed, placed))
            _move_out(files, recorded.folder)
        return extended

    def _digests(self, masks: Mapping[Path, str]) -> tuple[tuple[str, str], ...]:
        """Return ``masks`` by their names below the project."""
        return tuple((path.relative_to(self.folder).as_posix(), digest) for path, digest in masks.items())

    def undo_newest(self, restore_captions: Callable[[UndoStep], None]) -> UndoStep | None:
        """Take the newest step's masks away, move its files back, restore its captions, and then forget the step."""
        found = self._newest()
        if found is None:
            return None
        folder, step = found
        with file_errors(self.folder):
            removed = _removed_files(folder)  # A stranger's words: only what is here moves.
            for mask in self._placed_masks(step):
                mask.unlink()
            for name in reversed(step.files):  # An image after its caption: one that is there has its own.
                target = path_inside(self.folder, name)
                if step.masks and target.exists():  # A mask that was changed since stays.
                    continue
                if path := removed.pop(Path(name).name, None):
                    move_new(path, target)
            restore_captions(step)
        shutil.rmtree(folder, ignore_errors=True)
        return step

    def _placed_masks(self, step: UndoStep) -> list[Path]:
        """Return the masks that ``step`` put in place and nobody has changed since. No other file counts."""
        found = []
        for name, digest in step.masks:
            with suppress(FileError):  # A stranger's name, which leads elsewhere.
                path = path_inside(self.folder, name)
                if path.name.endswith(MASK_SUFFIX) and path.is_file() and sha256(path) == digest:
                    found.append(path)
        return found

    def _steps(self) -> list[Path]:
        return sorted(path for path in find_matching(self.steps_folder, "*") if path.name.isdecimal())

    def _newest(self) -> tuple[Path, UndoStep] | None:
        """Return the newest step and its folder. Raises FileError if it is there, and cannot be read."""
        for folder in reversed(self._steps()):
            step = _read_step(folder)
            if step is None:  # Incomplete, or foreign: try an older one.
                continue
            removed = {Path(name).name for name in step.files} & _removed_files(folder).keys()
            if step.captions or removed or self._placed_masks(step):
                return folder, step  # Else its process was killed before it removed anything, or after the undo.
        return None


def _read_step(folder: Path) -> UndoStep | None:
    """Return a step's description; None if it has none, or no valid one. Raises FileError if it cannot be read."""
    if not (folder / STEP).is_file():
        return None
    try:
        values = read_json(folder / STEP, MAX_STEP_BYTES)
        captions = tuple((str(name), str(old), str(new)) for name, old, new in values["captions"])
        masks = tuple((str(name), str(digest)) for name, digest in values.get("masks", ()))
        return UndoStep(str(values["what"]), tuple(map(str, values["files"])), captions, masks)
    except (FormatError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_step(folder: Path, step: UndoStep) -> RecordedStep:
    write_atomic(folder / STEP, json.dumps(asdict(step), ensure_ascii=False))
    return RecordedStep(folder, step)


def _move_out(files: Sequence[Path], folder: Path) -> None:
    """Move ``files`` into a step's ``folder``; one that is gone already is left out."""
    for path in files:
        if path.exists():
            os.replace(path, folder / path.name)


def _removed_files(folder: Path) -> dict[str, Path]:
    """Return the files in a step's folder, by their names."""
    return {path.name: path for path in find_matching(folder, "*") if path.name != STEP}
