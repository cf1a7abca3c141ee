"""Trouble during training: images that change, numbers that are not finite, a clock that jumps."""

import shutil
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdlora.errors import ConfigError, DatasetError, NonFiniteError
from sdlora.events import Notice, RunFinished, RunStarted, RunStopped, StepDone
from sdlora.training import prepare, trainer
from sdlora.training.distributed import Distributed
from tests.support.training import STEPS, assert_equal_files, events_of, train_in_process


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def another(path):
    Image.new("RGB", (64, 64), "blue").save(path)


CHANGES = {"cut": cut, "removed": lambda path: path.unlink(), "another": another}


@pytest.fixture
def own(pictures, tmp_path):
    """A folder of pictures that may be spoilt."""
    return shutil.copytree(pictures, tmp_path / "pictures")


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_spoilt_while_the_run_begins_is_named_and_spoils_no_cache(
    configure, pictures, own, tmp_path, monkeypatch, change
):
    """After all pictures were found good, and before they are encoded. Then all is well again."""
    open_base = prepare.load_base
    config = configure(data__folder=str(own))
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "load_base", lambda *args: (CHANGES[change](own / "4.png"), open_base(*args))[1])
        with pytest.raises(DatasetError, match=r"4\.png: "):
            train_in_process(config, tmp_path / "run")
    shutil.copy(pictures / "4.png", own)
    train_in_process(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "cache")
    train_in_process(config, tmp_path / "clean")
    assert_equal_files(tmp_path / "run" / "adapter.safetensors", tmp_path / "clean" / "adapter.safetensors")


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_spoilt_between_steps_costs_the_run_nothing_and_a_resume_names_it(configure, own, tmp_path, change):
    config = configure(data__folder=str(own))
    train_in_process(config, tmp_path / "whole")
    kept = shutil.copytree(own, tmp_path / "kept")
    _, events, _ = train_in_process(
        config, tmp_path / "parts", 3, between_steps=lambda family: shutil.rmtree(own, True)
    )
    assert events_of(RunStopped, events)[0].step == 3
    shutil.copytree(kept, own)
    CHANGES[change](own / "4.png")
    message = {"cut": r"4\.png", "removed": "pictures and captions", "another": "pictures and captions"}[change]
    with pytest.raises((DatasetError, ConfigError), match=message):
        train_in_process(config, tmp_path / "parts")
    shutil.copy(kept / "4.png", own)
    finished, _, output = train_in_process(config, tmp_path / "parts")
    assert finished
    assert_equal_files(tmp_path / "whole" / "adapter.safetensors", output.adapter)


def spoil_gradients(monkeypatch, step, value):
    """From optimizer step ``step`` (from 0) on, or only there, one number of one gradient is ``value``."""
    clip, calls = Distributed.clip, []

    def spoilt(distributed, optimizer, parameters, most):
        calls.append(None)
        if step(len(calls) - 1):
            next(p.grad for p in parameters if p.grad is not None).view(-1)[0] = value
        return clip(distributed, optimizer, parameters, most)

    monkeypatch.setattr(Distributed, "clip", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_none_under_a_finite_loss_leaves_its_step_out(configure, tmp_path, monkeypatch, value):
    spoil_gradients(monkeypatch, lambda step: step == 2, value)
    finished, events, output = train_in_process(configure(checkpoint__every=1), tmp_path / "run")
    assert finished
    assert all(torch.tensor(event.loss).isfinite() for event in events_of(StepDone, events))
    assert [event.message for event in events_of(Notice, events) if "left out" in event.message] == [
        "step 3 was left out: its loss or gradient is not finite"
    ]
    before, after = load_file(output.checkpoint(2)), load_file(output.checkpoint(3))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in load_file(output.adapter).values())


def test_gradients_that_stay_none_end_the_run_and_what_it_saved_is_sound(configure, tmp_path, monkeypatch):
    config = configure(train__steps=12, checkpoint__every=3)
    with monkeypatch.context() as patch:
        spoil_gradients(patch, lambda step: step >= 4, float("nan"))
        with pytest.raises(NonFiniteError, match=r"5 steps in a row gave no finite gradient \(the last was 9\)"):
            train_in_process(config, tmp_path / "run")
    finished, events, output = train_in_process(config, tmp_path / "run")
    assert finished
    assert events_of(RunStarted, events)[0].step == 6
    saved = [output.adapter, *output.checkpoints.iterdir(), *output.states.glob("*/*.safetensors")]
    assert all(value.isfinite().all() for path in saved for value in load_file(path).values())


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_no_duration_no_order_and_no_bit(configure, tmp_path, monkeypatch, jump):
    _, _, whole = train_in_process(configure(), tmp_path / "whole")
    real, now = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + now[0])
    step = trainer.training_step

    def with_jumps(*args):
        now[0] += jump
        return step(*args)

    monkeypatch.setattr(trainer, "training_step", with_jumps)
    begun = time.monotonic()
    train_in_process(configure(), tmp_path / "run", stop_after=3)
    _, events, output = train_in_process(configure(), tmp_path / "run")
    taken = time.monotonic() - begun
    assert [event.step for event in events_of(StepDone, events)] == [4, 5, STEPS]
    assert all(0 < event.seconds < taken and 0 <= event.left < taken * STEPS for event in events_of(StepDone, events))
    assert 0 < events_of(RunFinished, events)[0].seconds < taken
    assert_equal_files(whole.adapter, output.adapter)
