"""Captions by the API: of images in memory, and by a job that may be stopped."""

import pytest
from PIL import Image

from sdlora.api.captioning import CaptionSettings, caption_images, caption_job, default_captioner, require_captioner
from sdlora.api.captioning import undo_captions as undo
from sdlora.errors import ConfigError, DatasetError, FileError, ModelError
from sdlora.events import Progress
from tools.pocket.captioned import drawings, parts_of
from tools.pocket.painters import PAINTERS


def test_images_in_memory_are_captioned():
    contents, images = drawings(PAINTERS["flat"], 4, 7000)
    counted = []
    found = caption_images(images, CaptionSettings(threshold=0, batch_size=3), lambda *done: counted.append(done))
    assert [parts_of(text)[1:] for text in found] == [(colour, place) for _, colour, place in contents]
    assert counted == [(3, 4), (4, 4)]


def test_a_job_that_is_stopped_keeps_what_it_wrote_and_says_so(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(400):
        Image.new("RGB", (64, 64), (number % 256, 60, 20)).save(folder / f"{number}.png")
    job = caption_job(folder, CaptionSettings(threshold=0, batch_size=1), tmp_path / "data")
    with pytest.raises(FileError, match="written so far are kept"):
        for event in job:
            if isinstance(event, Progress) and event.phase == "captioning" and event.done > 1:
                job.stop()
    assert 1 < len([*folder.glob("*.txt")]) < 400
    assert "words of a model in" in undo(folder)
    assert [*folder.glob("*.txt")] == []


def test_the_captioner_of_a_base_is_its_own_or_one_of_the_real_world():
    assert default_captioner("pocket") == "pocket"
    assert default_captioner("stable-diffusion-v1-5/stable-diffusion-v1-5").startswith("Salesforce/blip")
    require_captioner("pocket", "pocket")
    require_captioner("some/captioner", "some/base")
    with pytest.raises(ConfigError, match="not that of some/base; take Salesforce"):
        require_captioner("pocket", "some/base")


def test_a_missing_folder_or_captioner_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(ModelError, match="'no such': is no captioner"):
        caption_job(tmp_path, CaptionSettings(model="no such"))
    with pytest.raises(DatasetError, match="is no folder"):
        caption_job(tmp_path / "gone", CaptionSettings())
