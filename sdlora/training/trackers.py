"""Trackers beside the journal, by Accelerate's classes: TensorBoard, Weights & Biases. The main process has them."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdlora.data.images import open_image
from sdlora.errors import ConfigError, missing_package
from sdlora.filesystem.reading import read_text
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import first_line
from sdlora.training.run_paths import RunPaths
from sdlora.training.settings import Train

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "sdlora"
"""Project of all runs at Weights & Biases."""
PREVIEW, EVALUATION_SHEET = "preview", "evaluation/sheet"
"""Tags of images; a preview's is followed by its number."""
ID = re.compile(r"[0-9a-f]{16}")


class Trackers:
    """The trackers of a run, which may be none."""

    def __init__(self, trackers: Sequence["GeneralTracker"] = ()):
        self._trackers = trackers

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars by their tags."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def log_image(self, tag: str, path: Path, step: int) -> None:
        """Log an image file to those trackers that take images. Raises DatasetError for a damaged one."""
        takers = [tracker for tracker in self._trackers if hasattr(tracker, "log_images")]
        if not takers:
            return
        pixels = np.asarray(open_image(path).rgb)[None]
        for tracker in takers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            # Weights & Biases drops what comes at an earlier step than its last, as a reopened record's sheet would.
            own_step = None if tag == EVALUATION_SHEET and tracker.name == "wandb" else step
            tracker.log_images({tag: pixels}, step=own_step, **layout)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.finish()


def open_trackers(train: Train, output: RunPaths, settings: Mapping[str, Any] | None = None) -> Trackers:
    """Start the trackers that ``train`` asks for; ``settings`` go to the one that shows settings.

    A resumed run goes on in the same record. Raises ConfigError if a package is missing, or a tracker cannot start.
    """
    require_packages(train)
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState()  # They ask it which process this is; a training has made it already.
    found: list[GeneralTracker] = []
    if train.tensorboard:
        found.append(TensorBoardTracker(output.tensorboard.name, output.folder))
    if train.wandb:
        found.append(
            WandBTracker(PROJECT, name=output.name, id=_wandb_id(output), resume="allow", dir=str(output.folder))
        )
    for number, tracker in enumerate(found):
        try:
            tracker.start()
            if tracker.name == "wandb" and settings:
                tracker.store_init_configuration(dict(settings))
        except Exception as error:  # Of a package that is no dependency: its errors have no names here.
            Trackers(found[:number]).finish()
            raise ConfigError(
                f"train.{tracker.name}: true: it cannot start ({first_line(error)}); mend that, or take false"
            ) from error
    return Trackers(found)


@contextmanager
def reopened_trackers(train: Train, output: RunPaths) -> Iterator[Trackers]:
    """Open the trackers of a run that has ended, to add something. Raises as ``open_trackers`` does."""
    trackers = open_trackers(train, output)
    try:
        yield trackers
    finally:
        trackers.finish()


def require_packages(train: Train) -> None:
    """Raise ConfigError if a tracker's package is missing."""
    for name in ("tensorboard", "wandb"):
        if getattr(train, name) and find_spec(name) is None:
            raise missing_package(f"train.{name}: true", name, "false")


def _wandb_id(output: RunPaths) -> str:
    """Return the run's id at Weights & Biases, by which a resumed run goes on in the same record."""
    if output.regular_files(output.folder, output.wandb_id.name):
        found = read_text(output.wandb_id, 1000).strip()
        if ID.fullmatch(found):
            return found
    found = secrets.token_hex(8)
    write_atomic(output.wandb_id, found + "\n")
    return found
