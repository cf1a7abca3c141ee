"""What was done to a project's pictures and captions last, kept so that it can be undone: `FOLDER/.history/NNNNNN/`.

A step's `step.json` names the files that were taken out, which lie beside it, and captions as they were and became.
It is written before a file moves, so that a machine that stops in between loses nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.filesystem.paths import path_inside, unused_path
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.writing import write_atomic

MAX_STEPS = 100
"""Steps that can be undone; what the oldest took out is then gone for good."""
MAX_STEP_BYTES = 64 << 20
"""Of a step: a thousand captions of 10 kB each, before and after, and room."""
NO_CAPTIONS: Mapping[Path, tuple[str, str]] = {}


@dataclass(frozen=True)
class UndoStep:
    """One thing that was done: in words, the files taken out, and captions changed, by paths below the project."""

    what: str
    files: tuple[str, ...] = ()
    captions: tuple[tuple[str, str, str], ...] = ()
    """A picture, its caption before, and after."""


class UndoLog:
    """The steps of one project."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.steps_folder = folder / ".history"

    def newest(self) -> UndoStep | None:
        """What ``undo`` would undo."""
        found = self._newest()
        return found[1] if found else None

    def numbers(self) -> set[int]:
        """The numbers of pictures that may come back, which no new picture may take."""
        return {int(path.stem) for path in self.steps_folder.glob("*/*") if path.stem.isdecimal()}

    def record(
        self, what: str, files: Sequence[Path] = (), captions: Mapping[Path, tuple[str, str]] = NO_CAPTIONS
    ) -> None:
        """Note a step, and move ``files`` out of the project. Raises FileError where that cannot be written."""
        names = tuple(path.relative_to(self.folder).as_posix() for path in files)
        changed = tuple((path.relative_to(self.folder).as_posix(), *both) for path, both in captions.items())
        steps = self._steps()
        place = self.steps_folder / f"{int(steps[-1].name) + 1 if steps else 1:06d}"
        write_atomic(place / "step.json", json.dumps(asdict(UndoStep(what, names, changed)), ensure_ascii=False))
        for path in files:
            if path.exists():
                os.replace(path, place / path.name)
        for old in steps[: -(MAX_STEPS - 1) or None] if len(steps) >= MAX_STEPS else []:
            shutil.rmtree(old, ignore_errors=True)

    def undo_newest(self) -> UndoStep | None:
        """Move the newest step's files back and forget the step; its captions are for the caller to restore."""
        found = self._newest()
        if found is None:
            return None
        place, step = found
        for name in step.files:
            lying = place / Path(name).name
            if lying.exists():
                target = unused_path(path_inside(self.folder, name))
                target.parent.mkdir(exist_ok=True)
                os.replace(lying, target)
        shutil.rmtree(place, ignore_errors=True)
        return step

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.steps_folder.glob("*") if path.name.isdecimal())

    def _newest(self) -> tuple[Path, UndoStep] | None:
        for place in reversed(self._steps()):
            try:
                values = read_json(place / "step.json", MAX_STEP_BYTES)
                captions = tuple((str(name), str(old), str(new)) for name, old, new in values["captions"])
                return place, UndoStep(str(values["what"]), tuple(map(str, values["files"])), captions)
            except (SdloraError, ValueError, KeyError, TypeError):  # Torn, or not ours: an older step is as good.
                continue
        return None
