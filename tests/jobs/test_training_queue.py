"""The queue as a person changes it: order, cancelling, copies; locks of other machines; longer runs; checkpoints."""

import platform
import time

import pytest
import torch

from sdlora import checkpoint
from sdlora.api.adapters import checkpoint_in_use, find_adapter, list_adapters, run_checkpoints, use_checkpoint
from sdlora.api.training import TrainingQueue, duplicate_run, extend_run, prepare_run
from sdlora.errors import BusyError, ConfigError
from sdlora.events import RunFinished, RunStarted, StoppedEarly
from sdlora.filesystem.locks import hold_lock
from sdlora.formats import write_adapter
from sdlora.jobs import training_queue
from sdlora.storage.device_lock import device_busy, device_lock
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run
from tests.support.adapters import random_lora


def names(queue):
    return "".join(run.name for run in queue.waiting())


@pytest.mark.parametrize(
    ("name", "where", "order"),
    [("c", "up", "acbd"), ("a", "up", "abcd"), ("a", "down", "bacd"), ("d", "down", "abcd"), ("d", "first", "dabc")],
)
def test_a_run_is_moved_in_the_queue_and_stays_there_for_others(
    queue, waiting, tmp_path, configure, name, where, order
):
    queue.move(waiting[name], where)
    assert names(queue) == order
    assert names(TrainingQueue(tmp_path)) == order  # a restarted server
    late = prepare_run(configure(), "e", tmp_path)
    queue.add(late)
    assert names(queue) == order + "e"


def test_runs_that_were_queued_at_one_moment_are_moved_all_the_same(queue, waiting):
    for number, run in enumerate(waiting.values(), 1):
        run.queued_file.write_text(str(number))
    for name, where, order in (("c", "up", "acbd"), ("d", "first", "dacb"), ("b", "up", "dabc"), ("d", "down", "adbc")):
        queue.move(waiting[name], where)
        assert names(queue) == order


def test_a_run_is_moved_by_one_write(queue, waiting, monkeypatch):
    written = []
    monkeypatch.setattr(training_queue, "write_atomic", lambda path, text: written.append(path.parent.name))
    queue.move(waiting["d"], "first")
    assert written == ["d"]


def test_a_cancelled_run_is_new_again_and_may_be_queued_anew_at_the_end(queue, waiting):
    queue.cancel(waiting["a"])
    assert queue.state(waiting["a"]) == "new"
    assert names(queue) == "bcd"
    queue.add(waiting["a"])
    assert names(queue) == "bcda"


def test_a_run_that_waits_keeps_its_place_if_it_is_queued_again(queue, waiting):
    queue.add(waiting["a"])
    assert names(queue) == "abcd"


def test_what_has_started_is_no_longer_in_the_queue(queue, waiting):
    with hold_lock(waiting["a"].lock_file, "the run"):
        assert names(queue) == "bcd"
        for change in (queue.cancel, lambda run: queue.move(run, "first")):
            with pytest.raises(BusyError, match="does not wait"):
                change(waiting["a"])


def test_a_lock_of_another_machine_does_not_keep_this_one_waiting(tmp_path, monkeypatch):
    mine = device_lock(tmp_path, torch.device("cpu"))
    monkeypatch.setattr(platform, "node", lambda: "another")
    with hold_lock(mine, "the device"):
        assert not device_busy(tmp_path)
        with hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"):
            assert device_busy(tmp_path)
    with hold_lock(tmp_path / "locks" / "cuda-GPU-1.lock", "the device"):
        assert device_busy(tmp_path)  # whose card it is cannot be told


def test_a_copy_has_the_settings_of_its_run_and_the_next_free_name(configure, tmp_path):
    first = prepare_run(configure(adapter__rank=3), "style", tmp_path)
    second = duplicate_run(first)
    third = duplicate_run(second)
    assert [run.name for run in (first, second, third)] == ["style", "style-2", "style-3"]
    assert third.config == first.config


def test_a_longer_run_changes_its_length_alone(configure, tmp_path):
    run = prepare_run(configure(train__steps=None, train__epochs=2), "run", tmp_path)
    checkpoint.save(run.states, checkpoint.State(6, {}, {}), keep=2)
    before = run.config
    run.lengthen(9)
    length = {"steps": 9, "epochs": None}
    expected = before.model_copy(update={"train": before.train.model_copy(update=length)})
    assert run.config == Run(run.folder).config == expected


@pytest.mark.parametrize("early", [True, False])
def test_a_run_that_stopped_early_is_lengthened_to_all_its_steps(configure, tmp_path, early):
    run = prepare_run(configure(train__stop="plateau"), "run", tmp_path)
    checkpoint.save(run.states, checkpoint.State(4, {}, {}), keep=2)
    journal = Journal(run.journal)
    size = {"modules": 1, "parameters": 1, "share": 0.1}
    journal(RunStarted(step=0, steps=6, device="cpu", precision="fp32", base="x", images=6, **size))
    decision = StoppedEarly(step=4, steps=6, rule="plateau", tolerance=0.01, best_step=1, best=0.5, ratios=[[4, 0.5]])
    for event in ([decision] if early else []) + [RunFinished(step=4, adapter="adapter.safetensors", seconds=1.0)]:
        journal(event)
    run.lengthen(6)
    assert (run.config.train.steps, run.config.train.stop) == (6, "never" if early else "plateau")
    run.never_stop()
    assert (run.config.train.steps, run.config.train.stop) == (6, "never")


@pytest.mark.parametrize(("saved", "steps", "message"), [(0, 9, "no state"), (6, 6, "has done 6 steps already")])
def test_a_run_that_cannot_go_on_longer_stays_as_it_is(configure, tmp_path, saved, steps, message):
    run = prepare_run(configure(), "run", tmp_path)
    if saved:
        checkpoint.save(run.states, checkpoint.State(saved, {}, {}), keep=2)
    text = run.config_file.read_bytes()
    with pytest.raises(ConfigError, match=message):
        run.lengthen(steps)
    with hold_lock(run.lock_file, "the run"), pytest.raises(BusyError):
        extend_run(run, 9)
    assert run.config_file.read_bytes() == text


@pytest.fixture
def saved(configure, tmp_path):
    """A finished run with three checkpoints."""
    run = prepare_run(configure(), "style", tmp_path)
    for step in (2, 4, 6):
        write_adapter(random_lora(seed=step, ss_steps=str(step)), run.checkpoint(step))
    run.adapter.write_bytes(run.checkpoint(6).read_bytes())
    return run


def test_every_checkpoint_can_be_drawn_with_by_its_name(saved, tmp_path):
    found = list_adapters(tmp_path)
    assert [one.name for one in found] == ["style", "style-000006", "style-000004", "style-000002"]
    for one in found:
        assert find_adapter(one.name, tmp_path) == one.path
    with pytest.raises(ConfigError, match="style-7"):
        find_adapter("style-7", tmp_path)


def test_a_chosen_checkpoint_is_the_runs_adapter_and_none_is_lost(saved, tmp_path):
    assert checkpoint_in_use(saved) == 6
    use_checkpoint(saved, 4)
    assert checkpoint_in_use(saved) == 4
    assert find_adapter("style", tmp_path).read_bytes() == saved.checkpoint(4).read_bytes()
    assert list(run_checkpoints(saved)) == [2, 4, 6]
    with pytest.raises(ConfigError, match="there are: 2, 4, 6"):
        use_checkpoint(saved, 5)
    with (
        hold_lock(saved.lock_file, "the run"),
        pytest.raises(BusyError, match="style is training and"),
    ):
        use_checkpoint(saved, 2)


def test_a_clock_that_was_set_back_puts_nobody_in_front(queue, waiting, configure, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() - 10**15)
    queue.add(prepare_run(configure(), "e", tmp_path))
    assert names(queue) == "abcde"
