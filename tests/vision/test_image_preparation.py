"""Images as a model sees them: sizes and levels as its folder says them."""

import json

import pytest
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.vision.image_preparation import ImagePreparation

LEVELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.125]}


def read(folder, name="preprocessor_config.json", **values):
    (folder / name).write_text(json.dumps(values))
    return ImagePreparation.read(folder, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [{"width": 24, "height": 16}, 24])
def test_an_image_is_stretched_and_its_levels_are_normalised(tmp_path, size):
    found = read(tmp_path, size=size, **LEVELS)
    pixels = found.pixels(Image.new("RGB", (100, 300), (255, 0, 255)))
    assert pixels.shape == (3, size if isinstance(size, int) else 16, 24)
    assert torch.allclose(pixels[:, 3, 5], torch.tensor([1.0, -2.0, 4.0]))


def test_newer_folders_say_it_in_the_config_of_the_processor(tmp_path):
    assert read(tmp_path, "processor_config.json", image_processor={"size": 24, **LEVELS}).width == 24


@pytest.mark.parametrize(
    "values", [{}, {"size": 24}, {"size": {"shortest_edge": 24}, **LEVELS}, {"size": "x", **LEVELS}]
)
def test_a_folder_that_says_no_size_or_levels_is_refused(tmp_path, values):
    with pytest.raises(ModelError, match="names no width and height, or no levels"):
        read(tmp_path, **values)


@pytest.mark.parametrize("values", [{"size": 0}, {"size": 4096}, {"size": 24, "image_std": [0, 1, 1]}])
def test_sizes_and_levels_of_no_model_are_refused(tmp_path, values):
    with pytest.raises(ModelError, match="fit no model"):
        read(tmp_path, **{**LEVELS, **values})
