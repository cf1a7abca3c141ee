"""Runs on pictures that are cropped to their subject."""

import pytest
from PIL import Image

from sdlora.events import Notice, StepDone
from sdlora.jobs.measurement import counted_examples, measurement_file
from tests.support.images import noise_image
from tests.support.training import assert_equal_files, events_of, train_in_process


@pytest.fixture
def masked(tmp_path):
    """Four pictures, three with masks in a folder of their own."""
    folder = tmp_path / "masked"
    (folder / "masks").mkdir(parents=True)
    for number in range(4):
        noise_image(160, 120, seed=number).save(folder / f"{number}.png")
    for number in range(3):
        mask = Image.new("L", (160, 120))
        mask.paste(255, (20, 10, 70, 110))
        mask.save(folder / "masks" / f"{number}.png")
    return folder


def test_a_run_on_crops_says_so_and_resumes_bit_for_bit(configure, tmp_path, masked):
    config = configure(data__folder=str(masked), data__crop="subject", data__masks=False, data__random_crop=True)
    finished, events, whole = train_in_process(config, tmp_path / "whole")
    assert finished
    told = " ".join(event.message for event in events_of(Notice, events))
    assert "Cropped to what the mask marks: 3 pictures (0.png, 1.png, 2.png)." in told
    assert "No mask to crop by: 1 picture (3.png)." in told
    _, early, _ = train_in_process(config, tmp_path / "parts", stop_after=3)
    _, late, parts = train_in_process(config, tmp_path / "parts")
    assert [event.loss for event in events_of(StepDone, events)] == [
        event.loss for event in events_of(StepDone, early + late)
    ]
    assert_equal_files(whole.adapter, parts.adapter)


def test_a_measurement_belongs_to_the_sizes_of_the_crops(configure, tmp_path, masked):
    plain = configure(data__folder=str(masked))
    cropped = configure(data__folder=str(masked), data__crop="subject", data__crop_margin=0)
    assert {tuple(example.size) for example in counted_examples(plain)} == {(160, 120)}
    assert {tuple(example.size) for example in counted_examples(cropped)} == {(160, 120), (50, 100)}
    before = measurement_file(cropped, tmp_path)
    assert before != measurement_file(plain, tmp_path)
    mask = Image.new("L", (160, 120))
    mask.paste(255, (0, 0, 120, 60))
    mask.save(masked / "masks" / "0.png")
    assert measurement_file(cropped, tmp_path) != before
