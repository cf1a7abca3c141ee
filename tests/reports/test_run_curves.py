"""Curves that are read from a journal: complete, bounded, and right after a resume."""

import math
from itertools import pairwise

import pytest

from sdlora.reports.run_curves import MOST_POINTS, Curve, RunCurves
from sdlora.signals import SMOOTHING
from tests.support.recorded_runs import measured, started, step_done, write_journal


def test_a_short_curve_keeps_every_value():
    curve = Curve()
    for step in range(1, 10):
        curve.add(step, step / 2)
    assert curve.points == [(step, step / 2) for step in range(1, 10)]


def test_a_long_curve_is_thinned_evenly_and_ends_with_its_newest_value():
    curve = Curve()
    for step in range(1, 12_346):
        curve.add(step, float(step))
    steps = [step for step, _ in curve.points]
    assert MOST_POINTS <= len(steps) <= 2 * MOST_POINTS + 1
    assert steps[0] == 1 and steps[-1] == 12_345
    gaps = {b - a for a, b in pairwise(steps[:-1])}
    assert len(gaps) == 1  # All but the newest are equally far apart.
    assert all(value == step for step, value in curve.points)


def test_smoothing_is_the_moving_average_of_all_values():
    values = [math.sin(step) for step in range(1, 1500)]
    curve, average = Curve(SMOOTHING), None
    for step, value in enumerate(values, 1):
        curve.add(step, value)
        average = value if average is None else SMOOTHING * average + (1 - SMOOTHING) * value
    assert curve.points[-1] == (1499, pytest.approx(average))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e31])
def test_values_that_are_no_numbers_leave_a_curve_as_it_was(value):
    curve = Curve(SMOOTHING)
    curve.add(1, 2.0)
    curve.add(2, value)
    curve.add(-1, 2.0)
    curve.add(1, 5.0)
    assert curve.points == [(1, 2.0)]


@pytest.fixture
def run(record):
    return record("one")


def test_a_resume_replaces_the_steps_that_it_repeats(run):
    first = [started(6), *(step_done(step, 6, loss=9.0) for step in range(1, 6)), measured(4, 0.5)]
    again = [started(6, 2), *(step_done(step, 6, loss=1.0) for step in range(3, 7)), measured(6, 0.4)]
    write_journal(run, [*first, *again])
    curves = RunCurves(run.journal).refresh()
    assert [step for step, _ in curves.curves["loss"].points] == [1, 2, 3, 4, 5, 6]
    assert curves.curves["loss"].points[2][1] == pytest.approx(SMOOTHING * 9 + (1 - SMOOTHING) * 1)
    assert curves.curves["loss_ratio_train"].points == [(6, 0.4)]
    assert curves.counted_steps == 9 and curves.step_seconds == 4.5  # What was done twice took its time twice.


def test_only_what_is_new_is_read(run, monkeypatch):
    curves = RunCurves(run.journal).refresh()
    before = curves.step
    assert before == 4
    read = []
    monkeypatch.setattr(RunCurves, "_apply", lambda self, event: read.append(event))
    curves.refresh()
    assert read == []
    with open(run.journal, "a") as journal:
        journal.write(step_done(5, 5).to_json() + "\n")
    curves.refresh()
    assert [event.step for event in read] == [5]


def test_damaged_lines_are_passed_over(run):
    lines = run.journal.read_bytes().splitlines(keepends=True)
    torn = b'{"kind": "StepDone", "step": "x"}\n\xff\xfe\n' + step_done(9, 9, loss=math.nan).to_json().encode() + b"\n"
    run.journal.write_bytes(b"".join([*lines[:3], torn, *lines[3:], b'{"kind": "StepD']))
    curves = RunCurves(run.journal).refresh()
    assert [step for step, _ in curves.curves["loss"].points] == [1, 2, 3, 4]
