"""A studio that draws for a long time: memory and open files stay as they are, and so does the base."""

import numpy as np
import pytest

from sdlora.formats import write_adapter
from sdlora.generation.studio import Studio
from tests.support.adapters import TWO_STEPS, random_lora
from tests.support.memory_checks import assert_flat, resources_in_use

ADAPTERS, ROUNDS = 50, 4


def pixels(studio, **changes):
    [image] = studio.generate("a red house", **TWO_STEPS | changes)
    return np.asarray(image)


@pytest.fixture
def files(tmp_path):
    for number in range(ADAPTERS):
        write_adapter(random_lora(seed=number), tmp_path / f"{number}.safetensors")
    return sorted(tmp_path.glob("*.safetensors"))


def test_fifty_adapters_that_come_and_go_four_times_leave_the_base_as_it_was(tiny_base, files):
    studio = Studio(str(tiny_base), device="cpu")
    weights = {name: tensor.clone() for name, tensor in studio.family.denoiser_module.state_dict().items()}
    base = pixels(studio)
    marks = []
    for _ in range(ROUNDS):
        for file in files:
            studio.add_adapter(file.stem, file, 0.5)
        assert (pixels(studio) != base).any()
        for file in files:
            studio.remove_adapter(file.stem)
        assert (pixels(studio) == base).all()
        marks.append(resources_in_use())
    assert_flat(marks[1], marks[-1])
    left = studio.family.denoiser_module.state_dict()
    assert left.keys() == weights.keys() and all((left[name] == weights[name]).all() for name in weights)


@pytest.mark.parametrize("pictures", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_pictures_in_a_row_leave_memory_and_open_files_flat(pictures, tiny_base):
    studio = Studio(str(tiny_base), device="cpu")
    studio.add_adapter("a", random_lora(), 0.5)
    marks = []
    for number in range(pictures):
        pixels(studio, seed=number, width=(64, 128)[number % 2])
        if number + 1 in (pictures // 2, pictures):
            marks.append(resources_in_use())
    assert_flat(*marks)
