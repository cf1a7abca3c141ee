"""A run as the page tells it."""

import pytest

from sdlora.events import (
    Measured,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    SampleReady,
    StepDone,
    StoppedEarly,
)
from sdlora.signals import BlockUpdate, PictureLoss, as_values
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run
from sdlora.ui import page_html, run_html, run_panel
from sdlora.ui.run_measurements import MAX_POINTS, RunMeasurements, measurements_html
from sdlora.ui.run_view import (
    REMEMBERED,
    RunView,
    RunViews,
    describe,
    fraction_done,
    loss_curve,
    short_status,
    stages,
)


@pytest.fixture
def view_of(tmp_path):
    """A function that writes events to a run's journal, and returns its view."""
    run = Run(tmp_path / "runs" / "mystyle")
    run.folder.mkdir(parents=True)
    journal, view = Journal(run.journal), RunView(run)

    def tell(*events):
        for event in events:
            journal(event)
        return view.refresh()

    return tell


def started(step=0, steps=100, stop="never"):
    return RunStarted(
        step=step, steps=steps, device="cpu", precision="fp32", base="pocket", images=10, modules=4, parameters=1000,
        share=0.01, stop=stop,
    )  # fmt: skip


def step(number, loss=1.0, left=65.0):
    return StepDone(step=number, steps=100, loss=loss, learning_rate=1e-3, seconds=0.1, left=left)


def test_each_phase_is_told_in_plain_words(view_of):
    assert describe(view_of(), "queued").startswith("Waiting its turn")
    assert describe(view_of(), "running") == "Starting"
    assert describe(view_of(Progress(phase="caching", done=3, total=10)), "running") == "Caching: 3 of 10"
    view = view_of(started(), step(1))
    assert describe(view, "running") == "Training: step 1 of 100 · 1:05 min left"
    assert short_status(view, "running") == "1/100 · 1:05 min left"
    assert fraction_done(view, "running") == 0.01
    assert "saving" in describe(view, "stopping")
    assert "Resume" in describe(view_of(RunStopped(step=1)), "stopped")
    assert describe(view_of(RunFailed(message="no room", exit_code=4)), "failed") == "Failed: no room"
    assert describe(view_of(started(1), RunFinished(step=100, adapter="x", seconds=61)), "finished").endswith(
        "1:01 min"
    )


EARLY = StoppedEarly(
    step=40, steps=100, rule="held_out", tolerance=0.01, best_step=20, best=0.75, ratios=[[30, 0.8], [40, 0.9]]
)


def test_a_run_that_may_stop_early_says_at_most_and_one_that_did_says_why(view_of):
    view = view_of(started(stop="held_out"), step(40))
    assert describe(view, "running") == "Training: step 40 of 100 · at most 1:05 min left"
    assert short_status(view, "running") == "40/100 · at most 1:05 min left"
    view = view_of(EARLY, Progress(phase="saving", done=0, total=1))
    assert describe(view, "running") == f"{EARLY.sentence}. Saving"
    assert short_status(view, "running") == "40/100"
    view = view_of(RunFinished(step=40, adapter="x", seconds=61))
    assert describe(view, "finished") == f"{EARLY.sentence}. Finished in 1:01 min"
    assert "Stopped early at step 40 of 100" in run_html.run_card("x", view, "finished")
    assert (view.end, run_panel.further_steps(view), fraction_done(view, "finished")) == (40, 60, 1.0)
    view = view_of(started(40), step(100), RunFinished(step=100, adapter="x", seconds=61))
    assert describe(view, "finished") == "Finished: 100 steps in 1:01 min"
    assert (view.end, run_panel.further_steps(view)) == (100, 50)


def test_a_decision_of_odd_values_is_shown_all_the_same(view_of):
    odd = StoppedEarly(step=1, steps=2, rule="<b>", tolerance=float("nan"), best_step=0, best=1e300, ratios={"x": 1})
    assert "<b>" not in run_html.run_card("x", view_of(started(), odd), "finished")


def test_a_phase_has_a_place_among_the_stages_and_tells_the_time_it_will_take_yet(view_of):
    at = [Progress(phase="encoding pictures", done=done, total=10, time=100.0 + 2 * done) for done in (0, 4)]
    view = view_of(*at)
    assert describe(view, "running") == "Encoding pictures: 4 of 10 · 12 s left"
    assert stages(view, "running") == [("Loading", "done"), ("Caching", "now"), ("Training", "next")]
    view = view_of(started(), step(25), Progress(phase="preview", done=1, total=2))
    assert describe(view, "running").startswith("Step 25 of 100 · drawing previews: 1 of 2")
    assert stages(view, "running")[-1] == ("Training", "now")
    assert fraction_done(view, "running") == 0.25


def test_class_pictures_are_a_stage_only_where_some_are_made(view_of):
    view = view_of(Progress(phase="making class pictures", done=1, total=2))
    assert ("Class pictures", "now") in stages(view, "running")


def test_a_resumed_run_shows_each_step_once(view_of):
    view = view_of(started(), *(step(number) for number in range(1, 6)), started(2), step(3, 0.5))
    assert view.losses == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_a_curve_has_few_points_and_ends_at_the_last_step():
    series = loss_curve([(number, 1 / number) for number in range(1, 1002)])
    assert {len(points) <= MAX_POINTS for points in series.values()} == {True}
    assert {points[-1][0] for points in series.values()} == {1001}
    assert loss_curve([]) == {"loss": [], "smoothed": []}


def test_words_of_people_never_become_html(view_of):
    evil = "<img src=x onerror=alert(1)>"
    view = view_of(
        started(), SampleReady(step=0, index=0, prompt=evil, path="x.png"), RunFailed(message=evil, exit_code=3)
    )
    pieces = (
        page_html.note([evil]), run_html.run_card(evil, view, "failed", [evil]), page_html.header(evil, view, "failed"),
        run_html.previews(list(view.previews.values())), page_html.progress_note(evil, None),
        run_html.queued_run(1, evil, evil),
    )  # fmt: skip
    for piece in pieces:
        assert evil not in piece
        assert "&lt;img" in piece


def test_a_new_run_under_a_deleted_runs_name_is_told_from_its_own_beginning(tmp_path):
    runs, watcher = tmp_path / "runs", RunViews()

    def trained(*events):
        run = Run(runs / "mystyle")
        run.folder.mkdir(parents=True)
        journal = Journal(run.journal)
        for event in events:
            journal(event)
        return run

    old = trained(started(), *(step(number, loss=5.0) for number in range(1, 9)))
    assert len(watcher.view(old).losses) == 8
    old.folder.rename(tmp_path / "trash")
    new = trained(started(), step(1, loss=0.5))
    assert watcher.view(new).losses == [(1, 0.5)]


def test_few_runs_are_kept_in_memory(tmp_path):
    watcher = RunViews()
    for number in range(REMEMBERED + 20):
        run = Run(tmp_path / "runs" / f"run{number}")
        run.folder.mkdir(parents=True)
        watcher.view(run)
    assert len(watcher._views) == REMEMBERED


def measured(step, trained=0.5, held_out=0.8, name="a.png"):
    pictures = [PictureLoss(name, (1.0, 2.0), (trained, 2 * trained)), PictureLoss("v.png", (1.0,), (held_out,), True)]
    return Measured(
        step=step, times=[250, 750], pictures=as_values(pictures), updates=as_values([BlockUpdate("up 1", 0.25, 3.5)])
    )


def test_measurements_are_a_curve_of_ratios_that_a_resume_rewinds(view_of):
    view = view_of(started(), measured(0, 1, 1), step(1), measured(50), measured(100, 0.2), started(50), measured(100))
    assert view.measured.curve() == [
        (0, 1.0, "trained"), (0, 1.0, "held out"), (50, 0.5, "trained"), (50, 0.8, "held out"), (100, 0.5, "trained"),
        (100, 0.8, "held out"),
    ]  # fmt: skip
    html = measurements_html(view.measured)
    assert html.index("a.png") < html.index("1 held out") < html.index("v.png")
    assert "0.800" in html and "up 1" in html and "3.5" in html and "step 100" in html


def test_the_table_tells_which_picture_stood_apart_early_and_what_is_learnt_at_the_end(view_of):
    def event(step, ratios, further):
        pictures = [
            PictureLoss(f"{number}.png", (1.0,), (ratio,), always=number < 3 or not further)
            for number, ratio in enumerate(ratios)
        ]
        return Measured(step=step, times=[500], pictures=as_values(pictures), updates=[])

    view = view_of(
        started(), event(0, [1] * 3, False), event(5, [0.5, 0.6, 0.55, 0.58, 0.9], True), event(30, [0.1] * 3, False)
    )
    html = measurements_html(view.measured)
    assert html.index("4.png") < html.index("0.png") and "apart at step 5" in html and "ratio at step 30" in html
    assert "<th scope='row'>4.png</th><td>4.8</td><td></td>" in html and "<td>0.100</td>" in html


def test_damaged_measurements_break_nothing(view_of):
    evil = "<img src=x onerror=alert(1)>"
    odd = [
        Measured(step=5, times=values, pictures=values, updates=values) for values in (None, 3, "x", [None], {}, [[]])
    ]
    view = view_of(
        started(), *odd, measured(6, name=evil), Measured(step=7, times=[evil, None], pictures=[], updates=[])
    )
    assert view.measured.curve() == [(6, 0.5, "trained"), (6, 0.8, "held out")]
    assert evil not in measurements_html(view.measured) and "&lt;img" in measurements_html(view.measured)
    view = view_of(Measured(step=8, times={}, pictures=measured(8).pictures, updates="x"))
    assert "a.png" in measurements_html(view.measured)


def test_without_measurements_the_page_shows_none():
    assert measurements_html(RunMeasurements()) == "" and RunMeasurements().curve() == []


def test_before_the_first_step_no_picture_is_listed(view_of):
    before = view_of(started(), measured(0, 1, 1)).measured
    assert before.pictures and measurements_html(before) == ""


def test_a_curve_of_many_measurements_has_few_points_and_the_last():
    found = RunMeasurements()
    for number in range(1001):
        found.add(measured(number))
    steps = {at for at, _, _ in found.curve()}
    assert len(steps) <= MAX_POINTS + 1 and {0, 1000} <= steps
