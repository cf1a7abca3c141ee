"""Estimates: kept by what decides them, measured in a process, taken from earlier runs where nothing was measured."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from sdlora.api.training import prepare_run
from sdlora.data.settings import ImageSet
from sdlora.errors import BusyError
from sdlora.events import StepDone
from sdlora.filesystem.locks import hold_lock
from sdlora.jobs import measurement, profiler
from sdlora.jobs.measurement import cached_measurement
from sdlora.jobs.profiler import Profiler
from sdlora.jobs.run_estimate import estimate_run
from sdlora.storage.device_lock import device_lock
from sdlora.storage.journal import Journal

VALUES = {
    "device": "cpu", "width": 64, "height": 64, "load": 1.0, "encode": 0.1, "step": 0.5, "sampling": 0.0,
    "picture": 0.0, "memory": 10_000_000,
}  # fmt: skip
PATIENCE = 600


@pytest.fixture
def known(configure, tmp_path):
    """A config that was measured."""
    config = configure()
    result = measurement.measurement_file(config, tmp_path)
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(VALUES))
    return config


def test_what_was_measured_is_known_at_once(known, tmp_path):
    found = estimate_run(known, tmp_path)
    assert (found.steps, found.pictures, found.memory) == (6, 6, 10_000_000)
    assert found.seconds == pytest.approx(1 + 6 * 0.1 + 6 * 0.5)
    assert estimate_run(known, tmp_path, done=4).seconds == pytest.approx(1 + 6 * 0.1 + 2 * 0.5)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"train__steps": 50, "train__learning_rate": 1e-5, "train__seed": 3, "train__gradient_accumulation": 4}, True),
        ({"adapter__rank": 8}, False),
        ({"train__batch_size": 1}, False),
        ({"data__resolution": 128}, False),
        ({"train__precision": "bf16"}, False),
        ({"optimizer__name": "lion"}, False),
        ({"sample__every": 2, "sample__prompts": ["a house"]}, False),
    ],
)
def test_a_measurement_holds_for_whatever_takes_as_long(configure, known, tmp_path, changes, same):
    assert (cached_measurement(configure(**changes), tmp_path) is not None) == same


@pytest.mark.parametrize(
    ("memory", "device", "stays"),
    [("auto", "cuda", False), ("auto", "cpu", True), ("8GB", "cuda", True), (None, "cuda", True)],
)
def test_what_was_chosen_for_what_a_card_had_free_is_no_plan_for_long(configure, tmp_path, memory, device, stays):
    config = configure(train__memory=memory)
    result = measurement.measurement_file(config, tmp_path)
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({**VALUES, "device": device}))
    assert cached_measurement(config, tmp_path) is not None
    then = time.time() - measurement.FREE_SECONDS - 1
    os.utime(result, (then, then))
    assert (cached_measurement(config, tmp_path) is not None) == stays


def test_a_picture_of_another_size_asks_for_a_new_measurement(configure, tmp_path, known):
    folder = tmp_path / "new"
    folder.mkdir()
    for name, size in (("a", (64, 64)), ("b", (96, 48))):
        Image.new("RGB", size).save(folder / f"{name}.png")
    config = configure(data__folder=str(folder))
    assert cached_measurement(config, tmp_path) is not None
    Image.new("RGB", (200, 50)).save(folder / "c.png")
    assert cached_measurement(config, tmp_path) is None


def test_before_it_is_measured_earlier_runs_with_these_settings_tell(configure, tmp_path):
    run = prepare_run(configure(), "earlier", tmp_path)
    for number, seconds in enumerate((9.0, 2.0, 2.5), 1):
        Journal(run.journal)(StepDone(step=number, steps=6, loss=1, learning_rate=1, seconds=seconds, left=0))
    found = estimate_run(configure(train__steps=10, train__learning_rate=1e-5), tmp_path)
    assert (found.seconds, found.measured) == (25.0, None)
    assert estimate_run(configure(adapter__rank=8), tmp_path).seconds is None


def test_steps_are_known_however_the_length_is_set(configure):
    assert configure().train.planned_steps([ImageSet("style", 6, 6)]) == 6
    by_epochs = configure(train__steps=None, train__epochs=4).train
    assert by_epochs.planned_steps([ImageSet("style", 6, 6)]) == 12  # two images a step
    assert (
        by_epochs.planned_steps([ImageSet("style", 6, 6)], micro_batches=5) == 20
    )  # two buckets with an odd number of images
    added_up = configure(train__steps=None, train__epochs=1, train__batch_size=1, train__gradient_accumulation=4).train
    assert (
        added_up.planned_steps([ImageSet("style", 10, 10)], micro_batches=10) == 3
    )  # The last step leaves no image out.
    assert (
        configure(train__steps=None).train.planned_steps([ImageSet("style", 10, 10)]) == 400
    )  # 800 images seen, two a step
    assert configure(train__steps=None).train.planned_steps([ImageSet("style", 10, 10)], processes=2) == 200


def test_measuring_waits_for_the_device_and_is_wished_for_only_where_that_is_quick(configure, tmp_path):
    measurer = Profiler(tmp_path)
    with (
        hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"),
        pytest.raises(BusyError, match="has the dev"),
    ):
        measurer.start(configure())
    measurer.request(configure())  # no bundled base: who knows how large it is
    assert not measurer.is_pending(configure())
    small = configure(model__base="pocket")
    measurer.request(small)
    assert measurer.is_pending(small)
    measurer.stop()
    assert not measurer.is_pending(small)


def test_a_process_measures_and_what_it_found_is_kept(configure, tmp_path):
    measurer, config = Profiler(tmp_path), configure()
    measurer.start(config)
    assert measurer.measures(config) and not measurer.measures(configure(adapter__rank=8))
    with pytest.raises(BusyError, match="already"):
        measurer.start(config)
    measurer._process.wait(PATIENCE)
    assert measurer.failure(config) == ""
    assert estimate_run(config, tmp_path).measured.device == "cpu"


def test_what_is_void_is_wished_for_again_and_does_not_hide_why_the_next_one_fails(configure, tmp_path, monkeypatch):
    measurer, config = Profiler(tmp_path), configure(model__base="pocket", train__memory="auto")
    result = measurement.measurement_file(config, tmp_path)
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({**VALUES, "device": "cuda"}))
    measurer._tried.add(result)
    measurer.request(config)
    assert not measurer.is_pending(config)
    then = time.time() - measurement.FREE_SECONDS - 1
    os.utime(result, (then, then))
    measurer.request(config)
    assert measurer.is_pending(config)
    code = "from sdlora.events import Failed; print(Failed(message='out of memory', exit_code=4).to_json())"
    monkeypatch.setattr(
        profiler, "spawn_python", lambda command, **files: subprocess.Popen([sys.executable, "-c", code], **files)
    )
    measurer.start(config)
    measurer._process.wait(PATIENCE)
    assert measurer.failure(config) == "out of memory"
    measurer.request(config)
    assert not measurer.is_pending(config)  # Once tried in vain, only who asks for it tries again.


def test_why_it_could_not_be_measured_is_told(configure, tmp_path):
    measurer, config = Profiler(tmp_path), configure(train__device="cuda:99")
    measurer.start(config)
    measurer._process.wait(PATIENCE)
    assert "cuda" in measurer.failure(config)
