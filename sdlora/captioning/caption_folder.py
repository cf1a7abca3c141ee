"""Captions for the images of a folder, written batch by batch: what was written stays if the process ends before its
work does, and is one step of the folder's undo log.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from sdlora.captioning.caption_text import new_caption
from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.data.caption_files import CaptionFiles
from sdlora.data.captions import read_caption
from sdlora.data.dataset import Example, survey_folder
from sdlora.data.folder_names import CAPTION_SUFFIXES
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from sdlora.events import OnEvent, Progress, ignore, report_progress
from sdlora.formatting import pluralize
from sdlora.vision.training_images import batches, notice_unusable, open_batch

WHAT = "words of a model"
"""Description of the change in the undo log."""


@dataclass
class CaptionReport:
    """Numbers of images: in the folder, captioned, left as they are, and of which the model could not tell enough."""

    images: int = 0
    written: int = 0
    kept: int = 0
    unsure: int = 0
    problems: list[str] = field(default_factory=list)
    """Images that cannot be captioned, or whose caption cannot be read, each with its reason."""

    def __str__(self) -> str:
        lines = [f"Captioned {pluralize(self.written, 'picture')} of {self.images}."]
        if self.kept:
            verb = "has a caption already, which stays" if self.kept == 1 else "have captions already, which stay"
            lines.append(f"{self.kept} {verb}.")
        if self.unsure:
            lines.append(f"The model is not sure of {pluralize(self.unsure, 'picture')}; caption them yourself.")
        return " ".join(lines)


def caption_folder(
    folder: Path,
    settings: CaptionSettings,
    load: Callable[[], Captioner],
    on_event: OnEvent = ignore,
) -> CaptionReport:
    """Write captions for the images in ``folder`` and its kohya folders; ``load`` is called if there is any to write.

    Files that cannot be used are left alone and reported. Raises DatasetError if there is no image, FileError if the
    captions cannot be written.
    """
    found = survey_folder(Data(folder=folder))
    report = CaptionReport(found.files, problems=[*found.problems])
    waiting = [example for example in found.examples if _is_wanted(example, settings, report)]
    if waiting:
        on_event(Progress(phase=f"loading {settings.model}"))
        captioner = load()
        _survey(found.examples, captioner, settings.batch_size, on_event)
        _write(waiting, CaptionFiles(found.root), settings, captioner, report, on_event)
    notice_unusable(report.problems, on_event)
    return report


def _is_wanted(example: Example, settings: CaptionSettings, report: CaptionReport) -> bool:
    """Return whether an image is to be captioned; count it in ``report`` if not."""
    for suffix in CAPTION_SUFFIXES:
        file = example.path.with_suffix(suffix)
        try:
            if file.exists():
                read_caption(file)
        except DatasetError:  # It is among the problems; nothing may replace what a person can still mend.
            return False
    if example.own_caption and settings.mode == "empty":
        report.kept += 1
        return False
    return True


def _survey(examples: Sequence[Example], captioner: Captioner, batch_size: int, on_event: OnEvent) -> None:
    """Let the captioner look at all ``examples``, those that keep their captions too; unusable ones are left out."""
    progress, done = report_progress(on_event, "looking at the pictures"), 0

    def opened() -> Iterator[list[Image.Image]]:
        nonlocal done
        for batch in batches(examples, batch_size):
            yield [image for _, image in open_batch(batch, [])]
            done += len(batch)
            progress(done, len(examples))

    captioner.survey(opened())


def _write(
    waiting: list[Example], files: CaptionFiles, settings: CaptionSettings, captioner: Captioner,
    report: CaptionReport, on_event: OnEvent,
) -> None:  # fmt: skip
    """Caption the ``waiting`` images batch by batch, and count them in ``report``."""
    change, progress = files.begin_change(WHAT), report_progress(on_event, "captioning")
    progress(0, len(waiting))
    done = 0
    for batch in batches(waiting, settings.batch_size):
        opened = open_batch(batch, report.problems)
        texts = captioner.captions([image for _, image in opened]) if opened else []
        written = {example.path: text for (example, _), text in zip(opened, texts, strict=True)}
        before = {example.path: example.own_caption for example in batch}
        report.unsure += sum(not text for text in texts)
        report.written += change.write(written, partial(_caption, settings, written, before))
        done += len(batch)
        progress(done, len(waiting))


def _caption(
    settings: CaptionSettings, written: dict[Path, str], before: dict[Path, str], image: Path, own: str
) -> str:
    """Return the new text of an image's file, given its text at this moment and the caption that it had ``before``,
    which a list, or a file of another ending, may have given.
    """
    new = new_caption(own or before[image], written[image], settings)
    return own if new == before[image] else new
