"""Caption files beside the images of a folder, changed by several at once, each change undoable.

Each change is alone with the folder, reads what is there at that moment, and is in the undo log before a file changes.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from sdlora.data.captions import read_caption, tidy_lines
from sdlora.data.undo_log import RecordedStep, UndoLog, UndoStep
from sdlora.errors import DatasetError
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import path_inside
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import pluralize

Change = Callable[[Path, str], str]
"""New caption of an image, given its path and the caption in its file ("" without one)."""


class CaptionFiles:
    """The files ``NAME.txt`` beside the images in ``folder``, and the log by which changes are undone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.history = UndoLog(folder)

    def read(self, image: Path) -> str:
        """Return the caption of ``image`` for a change: raise DatasetError if there is one that cannot be read."""
        file = image.with_suffix(".txt")
        try:
            return read_caption(file) if file.exists() else ""
        except DatasetError as error:
            raise DatasetError(f"{file.name}: {error}") from None

    def write(self, image: Path, text: str) -> None:
        """Store a caption; an empty one removes it. Call it alone with the folder."""
        file = path_inside(self.folder, image).with_suffix(".txt")
        if text.strip():
            write_atomic(file, tidy_lines(text))
        else:
            file.unlink(missing_ok=True)

    def begin_change(self, what: str) -> "CaptionChange":
        """Begin a change that is one step of the log, however many writes it takes; ``what`` describes it."""
        return CaptionChange(self, what)

    def undo(self) -> str:
        """Undo the last change. Returns its description; empty if there was none."""
        with exclusive(self.folder):
            step = self.history.undo_newest(self._restore)
        return step.what if step else ""

    def _restore(self, step: UndoStep) -> None:
        for name, old, new in step.captions:
            image = path_inside(self.folder, name)
            if image.exists() and self.read(image) == new:  # One that was edited since stays.
                self.write(image, old)


class CaptionChange:
    """One step of the undo log, which grows with every write."""

    def __init__(self, files: CaptionFiles, what: str):
        self.files, self.what = files, what
        self.changed: set[Path] = set()
        """Images whose caption has changed so far."""
        self._step: RecordedStep | None = None

    def write(self, images: Iterable[Path], change: Change) -> int:
        """Give each of ``images`` that still exists its new caption. Returns the number that changed.

        Raises DatasetError, before anything changes, if a caption cannot be read.
        """
        files = self.files
        with exclusive(files.folder):
            changes = {}
            for image in images:
                if not image.exists():  # Removed meanwhile.
                    continue
                old = files.read(image)
                new = tidy_lines(change(image, old))
                if new != old:
                    changes[image] = (old, new)
            if changes:
                self.changed |= changes.keys()
                what = f"{self.what} in {pluralize(len(self.changed), 'caption')}"
                self._step = files.history.extend(self._step, what, changes)
            for image, (_, new) in changes.items():
                files.write(image, new)
        return len(changes)
