"""Killed at every point of saving and journalling, or out of disk there: a run goes on, and nothing is lost of it."""

import ast
import re
import signal
import time
from pathlib import Path

import pytest

import sdlora
from sdlora import checkpoint, failpoints
from sdlora.api.training import find_run, list_runs, run_failure
from sdlora.errors import FileError
from sdlora.events import Notice, RunStarted, StepDone
from sdlora.filesystem.paths import numbered_paths
from sdlora.filesystem.writing import TEMPORARY
from sdlora.jobs.launch import Training
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run
from tests.support.run_outcome import run_outcome
from tests.support.training import train_in_process

WORKER = "sdlora.jobs.training_worker"
KILLED = -9
STEPS = 8
VARIED = dict(
    train__steps=STEPS, checkpoint__every=1, sample__every=3, sample__prompts=["a red house"], sample__steps=1,
    sample__width=64, sample__height=64, prior__weight=0.5, prior__class_prompt="a house", prior__count=2,
    prior__steps=1, adapter__dropout=0.2, data__flip=True,
)  # fmt: skip
"""A run that passes every point."""
CHAIN = [
    "file.begun:2", "class.kept", "file.written:4", "file.flushed:2", "cache.kept:3", "file.renamed", "journal.half:4",
    "journal.line:9", "preview.kept", "file.written:2", "checkpoint.adapter", "state.begun", "state.tensors",
    "state.values", "state.manifest", "state.flushed", "state.renamed", "checkpoint.saved", "state.dropped",
    "file.flushed:2", "journal.half:5", "preview.kept", "end.adapter", "end.card",
]  # fmt: skip
"""Failpoints at which one run is killed in turn: class images, latents, previews, adapters, states, its end."""
IN_A_RUN = [name for name in failpoints.POINTS if not name.startswith("run.")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Filled by the first test that needs it: what comes of the varied run if nothing happens to it."""
    return {"data_dir": tmp_path_factory.mktemp("whole")}


@pytest.fixture
def uninterrupted(configure, fork_server, whole):
    if "outcome" not in whole:
        run = Run.create(whole["data_dir"] / "runs", "run", configure(**VARIED))
        assert train(fork_server, run) == 0, run.log.read_text()
        whole["outcome"] = run_outcome(run)
    return whole["outcome"]


def train(fork_server, run, **trouble):
    """The exit code of a process that trains ``run`` in such ``trouble``."""
    run.printed = run.log.stat().st_size if run.log.exists() else 0
    return fork_server.start(WORKER, [str(run.folder)], run.log, **trouble).wait()


class Recorder:
    """Stands for a fault that never strikes, and knows what was passed."""

    def __init__(self):
        self.passed = set()

    def passing(self, name, first):
        self.passed.add(name)


def test_every_point_is_in_the_table_and_is_passed_by_a_short_run(configure, tmp_path, monkeypatch):
    named = set()
    for path in Path(sdlora.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.point":
                named.add(ast.literal_eval(node.args[0]))
    assert named == {*failpoints.POINTS}
    monkeypatch.setattr(failpoints, "_armed", recorder := Recorder())
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED))
    finished, events, _ = train_in_process(run.config, run.folder)
    Journal(run.journal)(events[-1])
    assert finished
    assert recorder.passed == {*failpoints.POINTS}


@pytest.mark.parametrize("text", ["", "state", "state.renamed:0", "state.renamed:1:run", "state.renamed::full", "a b"])
def test_nothing_else_can_be_armed(text):
    with pytest.raises(ValueError, match="SDLORA_FAULT"):
        failpoints.Failpoint.parse(text)


def test_a_fault_strikes_once_at_its_count_and_then_no_more():
    fault, done = failpoints.Failpoint.parse("cache.kept:2:full"), []
    fault.passing("cache.kept", None)
    fault.passing("class.kept", None)
    with pytest.raises(OSError, match="No space left"):
        fault.passing("cache.kept", lambda: done.append("first"))
    fault.passing("cache.kept", None)
    assert done == ["first"]


def test_a_run_killed_at_every_point_ends_as_if_nothing_had_happened(configure, fork_server, tmp_path, uninterrupted):
    assert {fault.split(":")[0] for fault in CHAIN} == {*IN_A_RUN}
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED))
    for fault in CHAIN:
        assert train(fork_server, run, failpoint=fault) == KILLED, f"{fault}: {run.log.read_text()[-2000:]}"
        assert run.state == "interrupted"
    assert train(fork_server, run) == 0, run.log.read_text()[-2000:]
    assert run_outcome(run) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("point", IN_A_RUN)
def test_a_run_killed_at_a_point_time_after_time_ends_as_if_nothing_had_happened(
    configure, fork_server, tmp_path, uninterrupted, point
):
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED))
    kills = 0
    for count in (1, 2, 3, 5, 8, 13):
        kills += train(fork_server, run, failpoint=f"{point}:{count}") == KILLED
    assert kills
    assert train(fork_server, run) == 0, run.log.read_text()[-2000:]
    assert run_outcome(run) == uninterrupted


@pytest.mark.parametrize(
    "fault", ["run.folder", "run.folders", "file.begun", "file.flushed", "file.renamed", "run.made"]
)
def test_a_run_is_made_whole_or_is_none(configure, fork_server, tmp_path, fault):
    configure().save(tmp_path / "mine.toml")
    prepare = ["train", str(tmp_path / "mine.toml"), "--name", "mine", "--prepare", "--data-dir", str(tmp_path)]
    assert fork_server.start("sdlora.cli.main", prepare, tmp_path / "log", failpoint=fault).wait() == KILLED
    made = list_runs(tmp_path)
    assert [run.config for run in made] == [configure()] * (fault == "run.made")
    assert fork_server.start("sdlora.cli.main", prepare, tmp_path / "log").wait() == 0
    assert find_run("mine-2" if made else "mine", tmp_path).state == "new"
    left = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(TEMPORARY)]
    assert len(left) == 1 + len(made)  # Nobody asked for others.


def test_a_name_that_another_process_takes_at_this_moment_gives_the_next(configure, tmp_path, monkeypatch):
    taken = []

    def late(path, is_folder):
        for candidate in numbered_paths(path, is_folder):
            if not taken:
                (candidate / "another").mkdir(parents=True)
                taken.append(candidate.name)
            yield candidate

    monkeypatch.setattr("sdlora.filesystem.writing.numbered_paths", late)
    assert Run.create(tmp_path / "runs", "mine", configure()).name == "mine-2"
    assert taken == ["mine"]


def test_a_run_that_cannot_be_made_leaves_nothing(configure, fork_server, tmp_path):
    configure().save(tmp_path / "mine.toml")
    prepare = ["train", str(tmp_path / "mine.toml"), "--name", "mine", "--prepare", "--data-dir", str(tmp_path)]
    for fault in ("run.folder:1:full", "run.folders:1:full", "file.written:1:full"):
        assert (
            fork_server.start("sdlora.cli.main", prepare, tmp_path / "log", failpoint=fault).wait()
            == FileError.exit_code
        )
        assert list((tmp_path / "runs").iterdir()) == []
    message = (tmp_path / "log").read_text()
    assert message.count("cannot be written (No space left on device)") == 3
    assert "Traceback" not in message


FULL = {
    "class.kept:1:full": None,
    "file.written:6:full": r"cache/latents/\w\w/\w+\.safetensors: cannot be written \(No space left on device\)",
    "journal.half:7:full": r"journal\.jsonl: cannot be written \(No space left on device\); mend that, then resume",
    "state.values:2:full": r"state/000002: the checkpoint cannot be written \(No space left on device\); mend that",
    "file.written:1:full": r"checkpoints/000002\.safetensors: cannot be written \(No space left on device\)",
    "state.renamed:2:full": r"state/000003: the checkpoint cannot be written \(No space left on device\); mend that",
}
"""Failpoints at which the disk is full, one after the other, in one run, and the message then."""


def test_a_run_out_of_disk_says_so_keeps_what_it_has_and_goes_on_when_there_is_room(
    configure, fork_server, tmp_path, uninterrupted
):
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED))
    for fault, message in FULL.items():
        before = checkpoint.newest_step(run.states)
        assert train(fork_server, run, failpoint=fault) == FileError.exit_code, (
            f"{fault}: {run.log.read_text()[-2000:]}"
        )
        _says(run, message or "No space left on device; mend that, then resume")
        found = checkpoint.newest_state(run.states)
        assert (found.step if found else 0) >= before
    assert train(fork_server, run) == 0, run.log.read_text()[-2000:]
    assert run_outcome(run) == uninterrupted


def test_a_disk_that_takes_no_more_of_a_file_costs_the_run_no_bit(configure, fork_server, tmp_path, uninterrupted):
    """The kernel writes a part of the file and refuses the rest, like a disk that fills up."""
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED))
    too_large = r"cannot be written \(File too large\)"
    for room, message in {
        1_000: rf"cache/.*: {too_large}",
        30_000: rf"checkpoints/000001\.safetensors: {too_large}",
        70_000: r"state/000001: the checkpoint cannot be written \(.*File too large.*\); mend that, then resume",
    }.items():
        assert train(fork_server, run, file_size_limit=room) == FileError.exit_code, run.log.read_text()[-2000:]
        _says(run, message)
    assert train(fork_server, run, failpoint="state.renamed:2") == KILLED
    for room, message in {
        run.journal.stat().st_size + 20: "nothing more can be written there; free some space",
        run.log.stat().st_size + 9_000: rf"journal\.jsonl: {too_large}; mend that, then resume",
    }.items():
        with open(run.journal, "r+b") as journal:  # As long, if need be by zeros: those that a power cut leaves.
            journal.seek(room - 20)
            journal.write(b"\n")
        assert train(fork_server, run, file_size_limit=room) == FileError.exit_code
        _says(run, message)
    assert checkpoint.newest_state(run.states).step == 2
    assert train(fork_server, run) == 0, run.log.read_text()[-2000:]
    assert run_outcome(run) == uninterrupted


def test_a_preview_that_finds_no_room_costs_no_run(configure, fork_server, tmp_path, uninterrupted):
    """Alone among the run's files it is larger than there is room for."""
    large = dict(sample__width=384, sample__height=384)
    run = Run.create(tmp_path / "runs", "run", configure(**VARIED | large))
    assert train(fork_server, run, file_size_limit=250_000) == 0, run.log.read_text()[-2000:]
    notices = [event.message for event in run.events() if isinstance(event, Notice) and "no preview" in event.message]
    assert [message.split(":")[0] for message in notices] == [f"no preview at step {step}" for step in (0, 3, 6, 8)]
    assert all("File too large" in message for message in notices)
    assert run_outcome(run)["adapters"] == uninterrupted["adapters"]
    assert run_outcome(run)["leftovers"] == []


def _says(run, message):
    """Check the message that a front end shows of the run's end."""
    training = Training(run, None, 1, start=0, printed=run.printed, last=next(reversed(run.events()), None))
    error = run_failure(training, FileError.exit_code)
    assert isinstance(error, FileError)
    assert re.search(message, str(error)), str(error)


def test_a_second_signal_ends_a_run_at_once_and_it_goes_on_from_its_checkpoint(configure, fork_server, tmp_path):
    run = Run.create(tmp_path / "runs", "run", configure(train__steps=500, checkpoint__every=2))
    process = fork_server.start(WORKER, [str(run.folder)], run.log)
    _wait(run, lambda events: any(isinstance(event, StepDone) and event.step > 2 for event in events))
    process.send(signal.SIGTERM)
    process.send(signal.SIGINT)
    assert process.wait() in (130, 143)
    assert run.state == "interrupted"
    reached = checkpoint.newest_state(run.states).step
    process = fork_server.start(WORKER, [str(run.folder)], run.log)
    _wait(run, lambda events: sum(isinstance(event, RunStarted) for event in events) == 2)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert run.state == "stopped"
    assert [event.step for event in run.events() if isinstance(event, RunStarted)] == [0, reached]


def _wait(run, done, seconds=60):
    end = time.monotonic() + seconds
    while not done(run.events()):
        assert time.monotonic() < end, run.log.read_text()[-2000:]
        time.sleep(0.02)
