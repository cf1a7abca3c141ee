"""Captions that a model writes: for images in memory, and for the files of a folder."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdlora.captioning.caption_folder import CaptionReport as CaptionReport
from sdlora.captioning.captioner import caption_images as _caption_images
from sdlora.captioning.settings import CaptionSettings as CaptionSettings
from sdlora.captioning.sources import HUB_CAPTIONER as HUB_CAPTIONER
from sdlora.captioning.sources import default_captioner as default_captioner
from sdlora.captioning.sources import load_captioner, locate_captioner
from sdlora.captioning.sources import require_captioner as require_captioner
from sdlora.data.caption_files import CaptionFiles
from sdlora.errors import DatasetError
from sdlora.events import OnEvent, OnProgress, ignore, unwatched
from sdlora.filesystem.paths import as_path, data_root
from sdlora.jobs.tool_process import CaptionJob as CaptionJob

DEFAULTS = CaptionSettings()


def caption_images(
    images: Sequence[Image.Image], settings: CaptionSettings = DEFAULTS, on_progress: OnProgress = unwatched
) -> list[str]:
    """Return what a model says of each of ``images``, in this process; empty where it cannot tell.

    Raises ModelError for what is no captioner, ConfigError for a missing package, DeviceError.
    """
    from sdlora.generation.device import choose_device

    captioner = load_captioner(settings, choose_device(settings.device))
    return _caption_images(captioner, images, settings.batch_size, on_progress)


def caption_folder(
    folder: Path, settings: CaptionSettings = DEFAULTS, data_dir: Path | None = None, on_event: OnEvent = ignore
) -> CaptionReport:
    """Write captions for the images in ``folder``, in a process of its own; ``undo_captions`` takes them back.

    Raises as ``caption_images`` does, DatasetError if there is no image, FileError if captions cannot be written.
    """
    return CaptionReport(**caption_job(folder, settings, data_dir).finish(on_event))


def caption_job(folder: Path, settings: CaptionSettings, data_dir: Path | None = None) -> CaptionJob:
    """Return the job of ``caption_folder``, which has not started.

    Raises DatasetError if there is no such folder, ModelError for what is no captioner.
    """
    locate_captioner(settings.model)
    return CaptionJob(existing_folder(folder), settings, data_root(data_dir).resolve())


def undo_captions(folder: Path) -> str:
    """Undo the last change of the captions in ``folder``. Returns its description; empty if there was none."""
    return CaptionFiles(existing_folder(folder)).undo()


def existing_folder(folder: Path) -> Path:
    """Return ``folder`` in full, as its name tells its lock. Raises DatasetError if there is no such folder."""
    path = as_path(folder).resolve()
    if not path.is_dir():
        raise DatasetError(f"{folder}: is no folder; give the folder that holds the images")
    return path
