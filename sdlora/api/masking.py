"""Masks that a model makes: for images in memory, and for the files of a folder."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdlora.api.captioning import existing_folder, undo_captions
from sdlora.events import OnEvent, ignore
from sdlora.filesystem.paths import data_root
from sdlora.jobs.tool_process import MaskJob as MaskJob
from sdlora.masking.mask_folder import MaskReport as MaskReport
from sdlora.masking.settings import FACES as FACES
from sdlora.masking.settings import HUB_SEGMENTER as HUB_SEGMENTER
from sdlora.masking.settings import MaskSettings as MaskSettings
from sdlora.masking.sources import load_segmenter, require_segmenter
from sdlora.vision.training_images import batches

DEFAULTS = MaskSettings()
undo_masks = undo_captions
"""Captions and masks of a folder share one undo log."""


def mask_images(images: Sequence[Image.Image], settings: MaskSettings = DEFAULTS) -> list[Image.Image | None]:
    """Return the mask (L) of each of ``images``, at its size, in this process; None where nothing was found.

    Raises ModelError for what is no segmenter, ConfigError for missing words or a missing package, DeviceError.
    """
    from sdlora.generation.device import choose_device
    from sdlora.masking.mask_shape import shape_mask

    segmenter = load_segmenter(settings, choose_device(settings.device))
    found = [each for batch in batches(images, settings.batch_size) for each in segmenter.probabilities(batch)]
    masks = [shape_mask(each, image.size, settings) for image, each in zip(images, found, strict=True)]
    return [mask and mask.resize(image.size) for image, mask in zip(images, masks, strict=True)]


def mask_folder(
    folder: Path, settings: MaskSettings = DEFAULTS, data_dir: Path | None = None, on_event: OnEvent = ignore
) -> MaskReport:
    """Write masks for the images in ``folder``, in a process of its own; ``undo_masks`` takes them back.

    Raises as ``mask_images`` does, DatasetError if there is no image, FileError if masks cannot be written.
    """
    return MaskReport(**mask_job(folder, settings, data_dir).finish(on_event))


def mask_job(folder: Path, settings: MaskSettings, data_dir: Path | None = None) -> MaskJob:
    """Return the job of ``mask_folder``, which has not started.

    Raises DatasetError if there is no such folder, ModelError for what is no segmenter, ConfigError for missing words.
    """
    require_segmenter(settings)
    return MaskJob(existing_folder(folder), settings, data_root(data_dir).resolve())
