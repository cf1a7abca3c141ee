"""Runs as processes: killed, stopped, resumed, doubled, and kept from one another."""

import os
import platform
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sdlora import checkpoint
from sdlora.api.training import find_run, prepare_run, resume_run, start_run, train
from sdlora.errors import BusyError, FileError, OutOfMemoryError, SdloraError
from sdlora.events import RunFailed, RunFinished, RunStarted, StepDone, StoppedEarly
from sdlora.filesystem.locks import hold_lock
from sdlora.jobs import training_worker as worker
from sdlora.storage.device_lock import device_lock
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run
from tests.support.run_outcome import model_hash


def wait_for_step(training, step):
    for event in training.events():
        if isinstance(event, StepDone) and event.step >= step:
            return
    raise AssertionError(training.run.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Filled by the first test that trains without interruption: its model hash."""
    return {}


def uninterrupted(configure, tmp_path, whole):
    if not whole:
        run = train(configure(), "whole", tmp_path)
        whole["hash"] = model_hash(run.adapter)
    return whole["hash"]


def test_a_run_killed_between_steps_resumes_to_the_same_bits(configure, tmp_path, whole):
    training = start_run(configure(), "killed", tmp_path)
    wait_for_step(training, 3)
    training.process.kill()
    training.process.wait()
    assert training.run.state == "interrupted"
    assert not training.run.adapter.exists()
    resumed = resume_run(training.run)
    events = list(resumed.events())
    assert resumed.process.wait() == 0, training.run.log.read_text()[-3000:]
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.step in (2, 4)  # the newest checkpoint that was whole when the process died
    assert training.run.state == "finished"
    assert model_hash(training.run.adapter) == uninterrupted(configure, tmp_path, whole)


def test_a_stop_by_signal_saves_and_exits_with_its_number(configure, tmp_path, whole):
    training = start_run(configure(), "stopped", tmp_path)
    wait_for_step(training, 1)
    os.kill(training.process.pid, signal.SIGTERM)
    assert training.process.wait() == 143
    assert training.run.state == "stopped"
    assert resume_run(training.run).wait() == 0
    assert model_hash(training.run.adapter) == uninterrupted(configure, tmp_path, whole)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    code = """
import signal, sys
from pathlib import Path
from sdlora.jobs.training_worker import StopRequest
from sdlora.storage.run_folder import Run

stop = StopRequest(Run(Path(sys.argv[1])))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.raise_signal(number)
    print(stop(), stop.obey(), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stop")], stdout=subprocess.PIPE, check=False)
    assert (ended.stdout.decode().splitlines(), ended.returncode) == (["True 143"], 130)


def test_the_runs_folder_stands_in_its_process_and_its_journal_is_followed_by_others(configure, tmp_path):
    training = start_run(configure(train__steps=200), "watched", tmp_path)
    wait_for_step(training, 1)
    assert str(training.run.folder) in psutil.Process(training.process.pid).cmdline()
    viewer = Run(training.run.folder)
    assert viewer.state == "running"
    assert any(isinstance(event, StepDone) for event in viewer.events())
    with pytest.raises(BusyError, match="running already"):
        resume_run(viewer)
    viewer.stop()
    assert training.process.wait(60) == 143
    assert viewer.state == "stopped"


def test_a_run_that_another_process_holds_is_left_alone(configure, tmp_path):
    run = prepare_run(configure(), "held", tmp_path)
    with hold_lock(run.lock_file, "the run"):
        worker = subprocess.run(
            [sys.executable, "-m", "sdlora.jobs.training_worker", str(run.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert worker.returncode == BusyError.exit_code
    assert "in use by another process" in worker.stderr
    assert run.events() == []


def test_a_device_that_another_run_holds_is_refused(configure, tmp_path):
    with (
        hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"),
        pytest.raises(BusyError, match="device cpu"),
    ):
        train(configure(), "second", tmp_path)


def test_a_device_is_known_by_its_machine_or_its_cards_own_number(tmp_path, monkeypatch):
    cpu = device_lock(tmp_path, torch.device("cpu"))
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert device_lock(tmp_path, torch.device("cpu")) != cpu
    numbers = ["GPU-1", "GPU-2"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=numbers[index]))
    names = [device_lock(tmp_path, torch.device(name)).name for name in ("cuda", "cuda:0", "cuda:1")]
    assert names == ["cuda-GPU-1.lock", "cuda-GPU-1.lock", "cuda-GPU-2.lock"]


def test_of_several_processes_the_one_that_failed_tells(configure, tmp_path, monkeypatch):
    run = Run.create(tmp_path / "runs", "run", configure())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert worker._report(RuntimeError("[enforce fail] Connection closed by peer"), run, Journal(run.journal)) == 1
    assert run.events() == []
    assert worker._report(FileError("the disk is full"), run, None) == FileError.exit_code
    (event,) = run.events()
    assert isinstance(event, RunFailed)
    assert (event.message, event.exit_code) == ("the disk is full", FileError.exit_code)


def test_what_is_saved_is_told_when_memory_runs_out(configure, tmp_path):
    run = Run.create(tmp_path / "runs", "run", configure())
    checkpoint.save(run.states, checkpoint.State(40, {}, {}), keep=2)
    assert worker._report(torch.OutOfMemoryError("CUDA out of memory"), run, None) == OutOfMemoryError.exit_code
    assert run.events()[-1].message.endswith("; 40 steps are saved")


def test_a_failed_run_raises_what_it_failed_with(configure, tmp_path):
    config = configure(adapter__init=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(SdloraError, match="nothing") as caught:
        train(config, "failed", tmp_path)
    assert caught.value.exit_code == 5
    assert find_run("failed", tmp_path).state == "failed"


SHARED = {
    "class pictures and added-up batches": {
        "prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 3, "prior__steps": 2,
        "train__gradient_accumulation": 2, "train__seed": 2,  # with 0, three gradients cancel: 5e-5
    },
    "text encoder frozen": {"train__text_encoder_learning_rate": 0.0},
}  # fmt: skip
"""The first trains all that a plain run trains, and more."""


@pytest.mark.parametrize("settings", SHARED.values(), ids=SHARED)
def test_two_processes_follow_one(configure, tmp_path, settings):
    """Two processes with one picture each and one with two see the same examples and the same noise, and each makes
    for itself what is made before the steps: class pictures, latents, encoded captions.

    What is left is the order of float32 sums, which AdamW's division by the gradient's size spreads:
    measured 5e-6 after six steps at a rate of 1e-3, where weights moved by up to 6e-3.
    """
    settings = {"train__learning_rate": 1e-3, "data__flip": True, **settings}
    one = train(configure(train__batch_size=2, **settings), "run", tmp_path / "one")
    two = train(configure(train__batch_size=1, **settings), "run", tmp_path / "two", processes=2)
    starts = [event for event in two.events() if isinstance(event, RunStarted)]
    assert len(starts) == 1
    a, b = load_file(one.adapter), load_file(two.adapter)
    assert a.keys() == b.keys()
    difference = max((a[key] - b[key]).abs().max().item() for key in a)
    assert difference < 5e-5
    moved = max(value.abs().max().item() for key, value in a.items() if "lora_up" in key)
    assert moved > 1e-3
    losses = [[event.loss for event in run.events() if isinstance(event, StepDone)] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_stop_early_at_the_same_step(configure, tmp_path):
    """The main process alone measures; the other one would wait for it for ever if it went on."""
    settings = {"train__stop": "plateau", "train__stop_patience": 2, "train__learning_rate": 1e-7, "monitor__every": 1}
    run = train(configure(train__batch_size=1, **settings), "run", tmp_path, processes=2)
    ends = [event.step for event in run.events() if isinstance(event, StoppedEarly | RunFinished)]
    assert (run.state, ends) == ("finished", [2, 2])


def test_a_new_run_never_touches_an_old_one(configure, tmp_path):
    first = prepare_run(configure(), "name", tmp_path)
    second = prepare_run(configure(), "name", tmp_path)
    outside = prepare_run(configure(), "../../x", tmp_path)
    assert (first.name, second.name) == ("name", "name-2")
    assert outside.folder.parent == tmp_path / "runs"


def test_a_folder_that_cannot_be_written_is_told_at_once(configure, tmp_path):
    (tmp_path / "file").touch()
    begun = time.monotonic()
    with pytest.raises(SdloraError, match="--data-dir") as caught:
        start_run(configure(), "x", tmp_path / "file")
    assert caught.value.exit_code == 5
    assert time.monotonic() - begun < 2


def test_a_request_to_stop_counts_for_one_process(fork_server, configure, tmp_path):
    run = Run.create(tmp_path / "data" / "runs", "mine", configure(train__steps=1))
    run.stop()
    log = tmp_path / "log"
    command = "sdlora.jobs.training_worker", [str(run.folder)], log
    assert fork_server.start(*command).wait() == 128 + signal.SIGTERM
    assert log.read_text().splitlines() == ["mine was asked to stop before it began; start it again"]
    assert fork_server.start(*command).wait() == 0
    assert run.state == "finished"
