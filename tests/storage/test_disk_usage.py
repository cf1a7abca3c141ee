"""Disk usage, and what can be freed of it: never a finished adapter, nor what a run needs."""

import os
import re
import time

import pytest

from sdlora.api.training import find_run, prepare_run, resume_run
from sdlora.cli.main import main
from sdlora.errors import BusyError, ConfigError
from sdlora.events import RunFinished, RunStopped
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.reading import size_of
from sdlora.storage.device_lock import device_lock
from sdlora.storage.disk_usage import DAY, FREED, KEPT, disk_usage, free_space
from sdlora.storage.journal import Journal
from sdlora.storage.library import Library
from tests.support.tiny_models import write_tiny_adapter as adapter

FINISHED = RunFinished(step=4, adapter="adapter.safetensors", seconds=1.0)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data ü '"


def made(configure, data_dir, name, end):
    """A run with two steps' adapters, a state, a preview, and a finished adapter if that is how it ended."""
    run = prepare_run(configure(), name, data_dir)
    for path in (run.checkpoint(2), run.checkpoint(4), *([run.adapter] if end is FINISHED else [])):
        adapter(path)
    (run.states / "000004").mkdir(parents=True)
    (run.states / "000004" / "state.json").write_bytes(b"x" * 5000)
    run.sample(0, 0).write_bytes(b"x" * 300)
    journal = Journal(run.journal)
    journal(end)
    journal.close()
    return run


@pytest.fixture
def done(configure, data_dir):
    return made(configure, data_dir, "done", FINISHED)


@pytest.fixture
def stopped(configure, data_dir):
    return made(configure, data_dir, "stopped", RunStopped(step=4))


def everything(data_dir):
    """Files of every kind that is freed, beside runs."""
    caches = ("latents/ab/1", "text/cd/2", "making/tmpabc/y", "covers/z", "page/0123/picture.webp", "estimates/1.json")
    for name in ("class-images/x/seed1.png", *caches):
        path = data_dir / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        if name.startswith(("making", "page")):  # Younger ones may be in use.
            age(path, 2)
    for name in ("runs/done/evaluation", "evaluations/mine-0123"):
        for inner in ("images/ab.png", "evaluation.json", "sheet.png"):
            path = data_dir / name / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 700)
    gone = data_dir / "projects" / "gone"
    gone.mkdir(parents=True)
    (gone / "001.png").write_bytes(b"x" * 1000)
    Library(data_dir).trash.put([gone], "gone", "the project gone")
    left = data_dir / "adapters" / ".tmp-abc.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"x" * 1000)
    age(left, 2)


def age(path, days):
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_what_a_tool_or_a_visitor_may_be_using_is_not_freed(data_dir):
    everything(data_dir)
    upload = data_dir / "cache" / "page" / "4567" / "upload.png"
    upload.parent.mkdir()
    upload.write_bytes(b"x")
    assert free_space(data_dir, ["cache"]) == 6000
    assert files(data_dir / "cache") == {"page/4567/upload.png", "class-images/x/seed1.png"}


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_is_in_one_row(data_dir, done, stopped):
    everything(data_dir)
    shares = disk_usage(data_dir)
    assert [share.name for share in shares] == [*FREED, *KEPT]
    paths = [path for share in shares for path in share.paths]
    assert len(set(paths)) == len(paths)
    assert sum(share.size for share in shares) == size_of(data_dir)
    assert all(share.size for share in shares if share.name not in ("projects", "pictures"))


def test_all_that_can_be_freed_leaves_adapters_and_what_unfinished_runs_need(data_dir, done, stopped):
    everything(data_dir)
    before, size = files(data_dir), size_of(data_dir)
    freed = free_space(data_dir, FREED)
    after = files(data_dir)
    assert freed == size - size_of(data_dir)
    assert {path for path in before if path.startswith("runs/stopped/")} <= after
    assert "evaluations/mine-0123/sheet.png" in after and "evaluations/mine-0123/images/ab.png" not in after
    assert before - after >= {
        "cache/latents/ab/1",
        "cache/class-images/x/seed1.png",
        "runs/done/state/000004/state.json",
    }
    kept = {path for path in before if path.startswith("runs/done/")} & after
    assert {"adapter.safetensors", "config.toml", "journal.jsonl", "samples/000000-0.png"} <= {
        path.removeprefix("runs/done/") for path in kept
    }
    assert not [path for path in after if ".tmp-" in path or path.startswith("trash/")]
    assert find_run("done", data_dir).state == "finished" and not disk_usage(data_dir)[0].size
    assert {entry.name for entry in Library(data_dir).adapters()} == {"done", "stopped"}


@pytest.mark.parametrize("name", FREED)
def test_one_kind_is_freed_and_the_others_stay(name, data_dir, done):
    everything(data_dir)
    before = {share.name: share.size for share in disk_usage(data_dir)}
    assert free_space(data_dir, [name]) == before[name] > 0
    assert {share.name: share.size for share in disk_usage(data_dir)} == {**before, name: 0}


def test_what_is_younger_than_asked_stays(data_dir, done):
    everything(data_dir)
    for path in data_dir.rglob("*"):
        if path.is_file() and "latents" not in path.parts:
            age(path, 40)
    age(done.adapter, 10)
    assert free_space(data_dir, ["cache", "states", "class-pictures"], older_than_days=30) == 6000
    left = files(data_dir)
    assert {"cache/latents/ab/1", "runs/done/state/000004/state.json"} <= left
    assert not left & {"cache/text/cd/2", "cache/making/tmpabc/y", "cache/class-images/x/seed1.png"}


def test_a_run_in_work_or_in_the_queue_keeps_its_state(data_dir, done):
    with hold_lock(done.lock_file, "the run"):
        assert free_space(data_dir, ["states", "checkpoints"]) == 0
    done.queued_file.touch()
    assert free_space(data_dir, ["states", "checkpoints"]) == 0
    done.queued_file.unlink()
    assert free_space(data_dir, ["states", "checkpoints"]) > 5000


def test_a_finished_run_without_states_is_not_trained_anew(data_dir, done):
    free_space(data_dir, ["states"])
    before = done.adapter.read_bytes()
    with pytest.raises(ConfigError, match="done: has finished, and has no state to continue from; its adapter is"):
        resume_run(done)
    assert done.adapter.read_bytes() == before and not done.log.exists()


def test_what_an_evaluation_found_stays_without_the_pictures_that_it_compared(data_dir, done):
    everything(data_dir)
    assert free_space(data_dir, ["evaluations"], older_than_days=1) == 0
    assert free_space(data_dir, ["evaluations"]) == 1400
    kept = {"evaluation.json", "sheet.png"}
    assert files(done.folder / "evaluation") == files(data_dir / "evaluations" / "mine-0123") == kept


@pytest.mark.parametrize("name", ["cache", "class-pictures", "evaluations"])
def test_caches_are_left_while_a_training_may_read_them(name, data_dir, done):
    import torch

    everything(data_dir)
    for lock in (done.lock_file, device_lock(data_dir, torch.device("cpu"))):
        with hold_lock(lock, "it"), pytest.raises(BusyError, match="a training may read from the caches"):
            free_space(data_dir, [name])
    assert (data_dir / "cache" / "latents" / "ab" / "1").is_file()


def test_links_are_not_followed(data_dir, done, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "picture.png").write_bytes(b"x" * 9000)
    (data_dir / "cache").mkdir(exist_ok=True)
    (data_dir / "cache" / "latents").symlink_to(outside)
    (done.states / "000009").symlink_to(outside)
    free_space(data_dir, FREED)
    assert (outside / "picture.png").stat().st_size == 9000


@pytest.mark.parametrize(
    ("names", "days"), [(["adapters"], 0), (["cash"], 0), (["cache"], -1), (["cache"], float("nan"))]
)
def test_what_cannot_be_freed_is_told(names, days, data_dir):
    with pytest.raises(ConfigError, match=r"cannot be freed; take cache|give a number of days"):
        free_space(data_dir, names, days)


def test_the_command_shows_and_frees(data_dir, done, capsys):
    everything(data_dir)
    arguments = ["disk", "--data-dir", str(data_dir)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "states" in shown and "what Train longer goes on from" in shown
    assert main([*arguments, "--free", "states", "--free", "trash"]) == 0
    assert re.match(r"freed [\d.]+ K?i?B\n", capsys.readouterr().out)
    assert main([*arguments, "--free", "adapters"]) == 2
    assert done.adapter.is_file()


def test_an_empty_data_folder_takes_nothing(data_dir):
    assert sum(share.size for share in disk_usage(data_dir)) == 0
