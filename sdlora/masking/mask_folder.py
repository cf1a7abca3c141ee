"""Masks for the images of a folder, written batch by batch: what was written stays if the process ends before its work
does, and is one step of the folder's undo log.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sdlora.data.dataset import Example, summarize_names, survey_folder
from sdlora.data.mask_files import MaskChange, MaskFiles, mask_path
from sdlora.data.settings import Data
from sdlora.data.undo_log import UndoLog
from sdlora.errors import DatasetError
from sdlora.events import OnEvent, Progress, ignore, report_progress
from sdlora.formatting import pluralize
from sdlora.masking.mask_shape import shape_mask
from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import MaskSettings
from sdlora.vision.training_images import batches, notice_unusable, open_batch

WHAT = "masks"
"""Description of the change in the undo log."""


@dataclass
class MaskReport:
    """Numbers of images: in the folder, masked, left as they are, and of which everything counts; and those in which
    nothing was found.
    """

    images: int = 0
    written: int = 0
    kept: int = 0
    whole: int = 0
    nothing: list[str] = field(default_factory=list)
    """Names of the images in which nothing was found: their masks stay as they were."""
    problems: list[str] = field(default_factory=list)
    """Images and masks that cannot be used, each with its reason."""

    def __str__(self) -> str:
        lines = [f"Masked {pluralize(self.written, 'picture')} of {self.images}."]
        if self.kept:
            verb = "has a mask already, which stays" if self.kept == 1 else "have masks already, which stay"
            lines.append(f"{self.kept} {verb}.")
        if self.whole:
            lines.append(f"Everything counts in {pluralize(self.whole, 'picture')}, which gets no mask.")
        if self.nothing:
            lines.append(f"Nothing was found in {summarize_names(self.nothing)}; paint a mask yourself.")
        return " ".join(lines)


def mask_folder(
    folder: Path, settings: MaskSettings, load: Callable[[], Segmenter], on_event: OnEvent = ignore
) -> MaskReport:
    """Write masks for the images in ``folder`` and its kohya folders; ``load`` is called if there is any to write.

    Files that cannot be used are left alone and reported. Raises DatasetError if there is no image, FileError if the
    masks cannot be written.
    """
    found = survey_folder(Data(folder=folder))
    report = MaskReport(found.files, problems=[*found.problems])
    waiting = [example for example in found.examples if _is_wanted(example, settings, report)]
    replaced = {example.mask.relative_to(found.root).as_posix() for example in waiting if example.mask}
    report.problems = [line for line in report.problems if line.partition(": ")[0] not in replaced]
    if waiting:
        on_event(Progress(phase=f"loading {settings.model}"))
        files = MaskFiles(found.root, UndoLog(found.root))
        _write(waiting, files.begin_change(WHAT), settings, load(), report, on_event)
    notice_unusable(report.problems, on_event)
    return report


def _is_wanted(example: Example, settings: MaskSettings, report: MaskReport) -> bool:
    """Return whether an image is to be masked; count it in ``report`` if not."""
    if mask_path(example.path).is_symlink():  # It is among the problems, as nobody knows where it leads.
        return False
    if example.mask is not None and settings.mode == "empty":
        report.kept += 1
        return False
    return True


def _write(
    waiting: list[Example], change: MaskChange, settings: MaskSettings, segmenter: Segmenter, report: MaskReport,
    on_event: OnEvent,
) -> None:  # fmt: skip
    """Mask the ``waiting`` images batch by batch, and count them in ``report``."""
    progress, done = report_progress(on_event, "masking"), 0
    progress(0, len(waiting))
    for batch in batches(waiting, settings.batch_size):
        opened = open_batch(batch, report.problems)
        found = segmenter.probabilities([image for _, image in opened]) if opened else []
        for (example, image), probabilities in zip(opened, found, strict=True):
            _store(example, shape_mask(probabilities, image.size, settings), change, settings, report)
        done += len(batch)
        progress(done, len(waiting))
    report.written = change.written


def _store(
    example: Example, mask: Image.Image | None, change: MaskChange, settings: MaskSettings, report: MaskReport
) -> None:
    """Write the mask of one image, unless it says nothing."""
    if mask is None:
        report.nothing.append(example.path.name)
    elif mask.getextrema() == (255, 255):
        report.whole += 1
    else:
        try:
            change.write(example.path, mask, settings.mode == "replace")
        except DatasetError as error:
            report.problems.append(f"{example.path.name}: {error}")
