"""The protocol of a job, shown by one made here: started, reporting, giving its result, failing, stopped."""

import json
import time

import psutil
import pytest

from sdlora.errors import DatasetError, FileError, SdloraError
from sdlora.events import Failed, Finished, Notice, Progress, Result, report_progress
from sdlora.jobs.job_process import JobProcess
from sdlora.time_left import TimeLeft

TOY = """
import sys, time, warnings
from sdlora.errors import DatasetError
from sdlora.events import Notice, Progress, Result, report_progress
from sdlora.jobs.job_process import serve_job

def add_up(request, report):
    print("what a library prints")
    report(Progress(phase="warming up"))
    progress = report_progress(report, "adding up", every=0)
    total = 0
    for number, value in enumerate(request["numbers"], 1):
        if value < 0:
            raise DatasetError(f"numbers: {value} is below 0; give 0 or more")
        total += value / request.get("by", 1)
        progress(number, len(request["numbers"]))
    if not total:
        report(Notice(message="the sum is 0"))
    report(Result(value={"sum": total}))
    time.sleep(request.get("sleep", 0))

sys.exit(serve_job(add_up))
"""


@pytest.fixture
def toy(tmp_path):
    """A function that makes a toy job of a request."""
    (tmp_path / "toy.py").write_text(TOY)
    return lambda **request: JobProcess([str(tmp_path / "toy.py")], request)


def test_a_job_reports_its_progress_and_gives_its_result(toy):
    job = toy(numbers=[1, 2, 3])
    events = list(job)
    progress = [(event.phase, event.done, event.total) for event in events if isinstance(event, Progress)]
    assert progress == [("warming up", 0, 0), *(("adding up", number, 3) for number in (1, 2, 3))]
    assert (job.result, job.notices) == ({"sum": 6}, [])
    assert isinstance(events[-2], Result) and isinstance(events[-1], Finished)


def test_a_notice_stops_nothing(toy):
    job, seen = toy(numbers=[0]), []
    assert job.finish(seen.append) == {"sum": 0}
    assert job.notices == ["the sum is 0"]
    assert any(isinstance(event, Notice) for event in seen)


def test_a_failure_is_the_error_of_its_exit_code_with_its_sentence(toy):
    job, seen = toy(numbers=[1, -2]), []
    with pytest.raises(DatasetError, match="-2 is below 0; give 0 or more"):
        job.finish(seen.append)
    assert isinstance(seen[-1], Failed) and seen[-1].exit_code == DatasetError.exit_code
    assert job._process.returncode == DatasetError.exit_code


def test_a_bug_is_reported_as_one(toy):
    with pytest.raises(SdloraError, match=r"ZeroDivisionError: .* \(a bug\)") as caught:
        toy(numbers=[1], by=0).finish()
    assert caught.value.exit_code == 1


def test_a_process_that_ends_without_a_word_is_an_error(tmp_path):
    (tmp_path / "dead.py").write_text("raise SystemExit(9)")
    with pytest.raises(FileError, match=r"exit code 9"):
        JobProcess([str(tmp_path / "dead.py")], {}).finish()


def test_a_job_that_is_stopped_ends_its_process_and_says_so(toy):
    job = toy(numbers=[1], sleep=60)
    with pytest.raises(FileError, match="Stopped"):
        job.finish(lambda event: isinstance(event, Result) and job.stop())
    assert job.result == {"sum": 1} and not psutil.pid_exists(job._process.pid)


def test_leaving_the_loop_ends_the_process(toy):
    job = toy(numbers=[1], sleep=60)
    for _ in job:
        break
    assert job._process.returncode is not None


def test_a_process_of_another_language_may_speak_it(tmp_path):
    lines = ['{"kind": "Result", "value": 3}', '{"kind": "FromTheFuture"}', "noise", '{"kind": "Finished"}']
    (tmp_path / "lines.py").write_text(f"print({json.dumps(chr(10).join(lines))})")
    assert JobProcess([str(tmp_path / "lines.py")], {}).finish() == 3


def test_progress_is_reported_now_and_then_and_always_at_its_end(monkeypatch):
    now, seen = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = report_progress(seen.append, "counting", every=1.0)
    for done in range(1, 11):
        report(done, 10)
        now[0] += 0.3
    assert [event.done for event in seen] == [1, 5, 9, 10]


def test_the_time_left_follows_the_pace_since_a_phase_was_first_seen():
    left = TimeLeft()
    assert left.update("a", 5, 10, now=0.0) is None  # Those five may have been done before.
    assert left.update("a", 7, 10, now=4.0) == 6.0
    assert left.update("a", 10, 10, now=6.0) == 0.0
    assert left.update("b", 0, 4, now=6.0) is None
    assert left.update("b", 1, 4, now=7.0) == 3.0
    assert left.update("b", 0, 4, now=8.0) is None  # It began again.
