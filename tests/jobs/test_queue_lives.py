"""The queue goes on, whatever a waiting run's folder holds, and whichever process dies at which moment."""

import os
import time

import pytest

from sdlora.api.training import TrainingQueue
from sdlora.errors import BusyError, ConfigError
from sdlora.events import RunFailed, RunFinished, RunStarted
from sdlora.jobs import training_queue
from sdlora.jobs.background import BackgroundLoop
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run


class Process:
    """Stands for a started process: it ends with ``code`` when that is set."""

    pid = 0

    def __init__(self):
        self.code = None

    def poll(self):
        return self.code


@pytest.fixture
def started(monkeypatch):
    """Runs that were launched, with their processes, by stand-ins that do nothing; a poisoned folder is refused."""
    launched = []

    def launch(run, queued):
        assert queued
        run.require_inside()
        process = Process()
        launched.append((run, process))
        return training_queue.Training(run, process, 1, 0)

    monkeypatch.setattr(training_queue, "launch", launch)
    return launched


def link_samples(run):
    run.samples.rmdir()
    run.samples.symlink_to(run.data_dir)


def loop_the_journal(run):
    run.journal.symlink_to(run.journal.name)


def put_a_pipe(run):
    os.mkfifo(run.folder / "journal.jsonl")


def break_the_config(run):
    run.config_file.write_text("version = ")


def remove_the_config(run):
    run.config_file.unlink()


def name_a_folder_queued(run):
    run.queued_file.unlink()
    run.queued_file.mkdir()


def write_nonsense_into_the_entry(run):
    run.queued_file.write_bytes(b"\xff\x00")


def link_the_lock(run):
    run.lock_file.symlink_to(run.config_file)


def name_a_folder_log(run):
    run.log.mkdir()


POISONS = [
    link_samples, loop_the_journal, put_a_pipe, break_the_config, remove_the_config, name_a_folder_queued,
    write_nonsense_into_the_entry, link_the_lock, name_a_folder_log,
]  # fmt: skip


def serve(queue, started, seconds=20):
    """Let the queue tick, each process that it starts come to a good end, until nothing waits; return their names."""
    end = time.monotonic() + seconds
    while queue.waiting() or any(process.code is None for _, process in started):
        assert time.monotonic() < end
        queue.tick()
        for run, process in started:
            if process.code is None:
                run.queued_file.unlink(missing_ok=True)
                process.code = 0
    queue.tick()
    return [run.name for run, _ in started]


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_entry_keeps_no_other_run_waiting(queue, waiting, started, poison):
    poison(waiting["b"])
    names = serve(queue, started)
    assert [name for name in names if name != "b"] == ["a", "c", "d"]
    if "b" not in names:
        assert queue.state(waiting["b"]) != "queued"


def test_a_run_that_cannot_be_started_has_failed_with_a_sentence(queue, waiting, started):
    link_samples(waiting["b"])
    serve(queue, started)
    assert queue.state(waiting["b"]) == "failed"
    assert not waiting["b"].is_queued
    assert "is a link out of" in waiting["b"].events()[-1].message


def test_a_bug_met_by_one_run_is_its_failure_and_no_other_runs(queue, waiting, started, monkeypatch):
    launch = training_queue.launch

    def odd(run, queued):
        if run.name == "b":
            raise ZeroDivisionError("nobody expected this")
        return launch(run, queued)

    monkeypatch.setattr(training_queue, "launch", odd)
    assert serve(queue, started) == ["a", "c", "d"]
    assert waiting["b"].events()[-1].message == "nobody expected this" and queue.state(waiting["b"]) == "failed"


def test_a_run_whose_journal_cannot_be_written_is_left_alone_until_it_is_queued_again(queue, waiting, started, capsys):
    loop_the_journal(waiting["b"])
    assert serve(queue, started) == ["a", "c", "d"]
    assert queue.state(waiting["b"]) == "failed"
    assert "journal.jsonl" in capsys.readouterr().err
    waiting["b"].journal.unlink()
    queue.add(waiting["b"])
    assert serve(queue, started) == ["a", "c", "d", "b"]


def test_a_background_loop_outlives_its_errors_and_prints_each_once(tmp_path, capsys):
    calls = []

    class Odd(BackgroundLoop):
        def tick(self):
            calls.append(None)
            if len(calls) < 4:
                raise ValueError("odd")

    loop = Odd(tmp_path)
    loop.watch(0.001)
    end = time.monotonic() + 10
    while len(calls) < 6:
        assert time.monotonic() < end
        time.sleep(0.001)
    loop.close()
    assert capsys.readouterr().err.count("ValueError: odd") == 1


def test_a_run_whose_process_dies_before_it_starts_waits_on_and_is_given_up_the_second_time(queue, waiting, started):
    for _ in range(2):
        queue.tick()
        assert started[-1][0].name == "a"
        started[-1][1].code = -9
    queue.tick()
    assert queue.state(waiting["a"]) == "failed"
    assert "could not be started" in waiting["a"].events()[-1].message
    assert started[-1][0].name == "b"


def test_a_run_that_finds_the_device_taken_keeps_its_position_however_often(queue, waiting, started):
    for _ in range(5):
        queue.tick()
        assert started[-1][0].name == "a"
        started[-1][1].code = BusyError.exit_code
    queue.tick()
    assert not waiting["a"].events() and [run.name for run in (waiting["a"], *queue.waiting())] == [*"abcd"]


def test_no_run_is_started_while_another_page_starts_the_one_before_it(queue, waiting, started):
    lock = waiting["a"].hold()  # Its process loads torch, and does not have the device yet.
    queue.tick()
    assert not started
    lock.release()
    queue.tick()
    assert [run.name for run, _ in started] == ["a"]


def test_a_run_killed_while_it_prepares_still_waits(fork_server, waiting, queue):
    run = waiting["a"]
    process = fork_server.start(
        "sdlora.jobs.training_worker", [str(run.folder), "--queued"], run.log, failpoint="cache.kept"
    )
    assert process.wait() == -9
    assert [other.name for other in queue.waiting()] == [*"abcd"]
    assert fork_server.start("sdlora.jobs.training_worker", [str(run.folder), "--queued"], run.log).wait() == 0
    assert [other.name for other in queue.waiting()] == [*"bcd"]
    kinds = [type(event) for event in run.events()]
    assert kinds.count(RunStarted) == kinds.count(RunFinished) == 1


def test_a_run_taken_out_of_the_queue_while_its_process_starts_is_not_trained(fork_server, waiting, tmp_path):
    run = waiting["a"]
    TrainingQueue(tmp_path).stop(run)  # on another page, which knows of no process
    assert fork_server.start("sdlora.jobs.training_worker", [str(run.folder), "--queued"], run.log).wait() == 143
    assert run.state == "new"


def test_a_run_deleted_while_its_process_starts_leaves_no_ghost(fork_server, queue, waiting, tmp_path):
    run, library = waiting["a"], Library(tmp_path)
    with pytest.raises(BusyError, match="waits in the queue"):
        library.delete_run("a")
    queue.stop(run)
    item = library.delete_run("a")
    log = tmp_path / "log"
    assert fork_server.start("sdlora.jobs.training_worker", [str(run.folder), "--queued"], log).wait() == 2
    assert "a: this run is not there any more" in log.read_text()
    assert not run.folder.exists()
    with pytest.raises(ConfigError, match="not there any more"):
        queue.add(run)
    assert not run.folder.exists()
    library.undo(item.folder.name)
    assert [found.name for found in Run.all(tmp_path)].count("a") == 1
    queue.add(run)
    assert [other.name for other in queue.waiting()] == [*"bcda"]


def test_a_device_that_is_taken_is_no_failure_of_a_waiting_run(fork_server, waiting, tmp_path):
    import torch

    from sdlora.filesystem.locks import hold_lock
    from sdlora.storage.device_lock import device_lock

    run = waiting["a"]
    with hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"):
        worker = fork_server.start("sdlora.jobs.training_worker", [str(run.folder), "--queued"], run.log)
        assert worker.wait() == BusyError.exit_code
    assert run.is_queued and not run.events()
    with hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"):  # A person who starts it is told.
        assert fork_server.start("sdlora.jobs.training_worker", [str(run.folder)], run.log).wait() == 7
    assert isinstance(run.events()[-1], RunFailed)
