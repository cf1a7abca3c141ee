"""Estimates of a run's time: the measured parts, and their sum."""

import pytest

from sdlora.data.concepts import run_concepts
from sdlora.data.dataset import Example
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from sdlora.generation.settings import Prior, Sample
from sdlora.training.profiling import RunProfile, count_previews, count_views, profile_run
from sdlora.training.settings import Train
from tests.support.training import train_job


def test_a_measurement_takes_real_steps_at_the_largest_size_and_leaves_no_run(configure, tmp_path):
    config = configure(
        train__gradient_accumulation=8, sample__every=2, sample__prompts=["a red house"],
        prior__weight=1.0, prior__class_prompt="a house", prior__count=50,
    )  # fmt: skip
    found = profile_run(train_job(config, tmp_path))
    assert (found.device, found.width, found.height) == ("cpu", 64, 64)  # the other shape has less area
    assert min(found.load, found.encode, found.step, found.picture) > 0 and found.memory > 0
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "class-images").exists()  # none is made: a training picture stands for them


def test_a_measurement_fails_as_the_run_would(configure, tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        profile_run(train_job(configure(data__folder=str(tmp_path / "nothing")), tmp_path))


def test_a_time_is_the_sum_of_all_that_a_run_does(tmp_path):
    measured = RunProfile(
        device="cpu", width=64, height=64, load=1000, encode=100, step=10, sampling=2, picture=1, memory=0
    )
    train, data = Train(gradient_accumulation=3), Data(folder=tmp_path, flip=True)
    examples = [Example(tmp_path / f"{index}.png", "", 64, 64) for index in range(5)]
    sample = Sample(every=4, prompts=("a", "b"), steps=20)
    concepts = run_concepts(data, Prior())
    views = count_views(concepts, examples)
    seconds = sum(measured.seconds_by_phase(concepts, Prior(), train, sample, views, steps=10).values())
    previews = 2 * 4  # before the first step, at 4, 8 and 10
    assert count_previews(sample, 10) == previews
    assert seconds == 1000 + 2 * 5 * 100 + previews * (1 + 20 * 2) + 10 * 3 * 10
    prior = Prior(weight=1, count=7, steps=25)
    preserving = run_concepts(data, prior)
    with_classes = sum(measured.seconds_by_phase(preserving, prior, train, sample, views, steps=10).values())
    assert with_classes - seconds == 7 * (1 + 25 * 2) + 7 * 100
