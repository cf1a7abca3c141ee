"""Masks by the API: of images in memory, and by a job that may be stopped."""

import pytest

from sdlora.api.masking import MaskSettings, mask_images, mask_job, undo_masks
from sdlora.errors import ConfigError, DatasetError, FileError, ModelError
from sdlora.events import Progress
from tests.support.images import noise_image
from tests.support.tiny_segmenters import write_tiny_clipseg

EVERYWHERE = {"words": "a dog", "threshold": 0.0, "soft": True}
"""Settings by which a mask is what the model says, wherever."""


@pytest.fixture
def model(tmp_path):
    return str(write_tiny_clipseg(tmp_path / "clipseg"))


def test_images_in_memory_are_masked_at_their_sizes(model):
    images = [noise_image(60, 40, seed=1), noise_image(30, 90, seed=2)]
    masks = mask_images(images, MaskSettings(model=model, batch_size=1, **EVERYWHERE))
    assert [mask.size for mask in masks] == [image.size for image in images]
    assert mask_images(images, MaskSettings(model=model, words="a dog", threshold=1.0)) == [None, None]


def test_a_job_that_is_stopped_keeps_what_it_wrote_and_says_so(model, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(300):
        noise_image(64, 64, seed=number).save(folder / f"{number}.png")
    job = mask_job(folder, MaskSettings(model=model, batch_size=1, **EVERYWHERE), tmp_path / "data")
    with pytest.raises(FileError, match="masks written so far are kept"):
        for event in job:
            if isinstance(event, Progress) and event.done > 1:
                job.stop()
    assert 1 < len([*folder.glob("*.mask.png")]) < 300
    assert undo_masks(folder).startswith("masks of ")
    assert [*folder.glob("*.mask.png")] == []


def test_a_missing_folder_segmenter_or_word_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(ModelError, match="'no such': is no segmenter"):
        mask_job(tmp_path, MaskSettings(model="no such"))
    with pytest.raises(ConfigError, match="words is empty"):
        mask_job(tmp_path, MaskSettings())
    with pytest.raises(DatasetError, match="is no folder"):
        mask_job(tmp_path / "gone", MaskSettings(model="faces"))
