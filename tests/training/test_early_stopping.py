"""Ending a run early: what decides, that a killed run decides the same, and what is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdlora.checkpoint import newest_step
from sdlora.data.cache import View
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept
from sdlora.errors import ConfigError
from sdlora.events import (
    CheckpointSaved,
    Measured,
    Notice,
    RunFinished,
    RunStarted,
    SampleReady,
    StepDone,
    StoppedEarly,
)
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.optim import Schedule
from sdlora.signals import PictureLoss, as_values, loss_ratio, read_pictures
from sdlora.training.early_stopping import EarlyStopping, least_measurements, stopping_notices
from sdlora.training.measured_images import MeasuredImage, MeasuringPlan
from sdlora.training.settings import Train
from sdlora.training.trainer import train
from tests.support.training import STEPS, assert_equal_files, events_of, train_in_process, train_job

STILL = {
    "train__stop": "plateau", "train__stop_patience": 2, "monitor__every": 1, "train__learning_rate": 1e-7,
    "checkpoint__every": 4,
}  # fmt: skip
"""Learns next to nothing: the ratio stays near 1, and measurements 1 and 2 are hardly lower than the one before."""
ENDS_AT = 2


def measured(step, trained=None, held_out=None):
    losses = [PictureLoss(f"{held}", (1.0,), (ratio,), held) for ratio, held in ((trained, False), (held_out, True))
              if ratio is not None]  # fmt: skip
    return Measured(step=step, times=[500], pictures=as_values(losses), updates=[])


def decided_at(stopping, ratios, every=10, steps=1000):
    """Return the step at which ``ratios`` from step 0 on end a run; None if they do not."""
    for number, ratio in enumerate(ratios):
        stopping.add(measured(number * every, *((ratio, None) if stopping.rule == "plateau" else (1.0, ratio))), steps)
        if stopping.decision is not None:
            return stopping.decision.step
    return None


@pytest.mark.parametrize(
    ("rule", "patience", "tolerance", "ratios", "step"),
    [
        ("plateau", 2, 0.0, [1, 0.9, 0.8, 0.8, 0.8], 40),
        ("plateau", 2, 0.0, [1, 0.9, 0.8, 0.85, 0.79, 0.85, 0.8], 60),
        ("plateau", 3, 0.1, [1, 0.9, 0.8, 0.7, 0.65, 0.62, 0.61], 60),  # 0.09 below 0.7 in three
        ("plateau", 1, 0.0, [1, 0.9, 0.8], None),
        ("plateau", 2, 0.0, [1, 1, 1], 20),
        ("held_out", 2, 0.0, [1, 0.8, 0.9, 0.9], 30),
        ("held_out", 2, 0.0, [1, 0.8, 0.8, 0.8, 0.8], None),
        ("held_out", 2, 0.05, [1, 0.8, 0.9, 0.84, 0.86, 0.87], 50),
        ("held_out", 3, 0.0, [1, 0.8, 0.9, 0.9, 0.7, 0.9, 0.9], None),
        ("never", 1, 0.0, [1, 1, 1], None),
    ],
)
def test_measurements_in_a_row_decide(rule, patience, tolerance, ratios, step):
    assert decided_at(EarlyStopping(rule, patience, tolerance), ratios) == step


def test_a_decision_has_its_figures_and_a_sentence():
    stopping = EarlyStopping("held_out", 2, 0.01)
    assert decided_at(stopping, [1, 0.75, 0.9, 0.95], steps=60) == 30
    decision = stopping.decision
    assert (decision.best_step, decision.best, decision.ratios) == (10, 0.75, [[20, 0.9], [30, 0.95]])
    assert decision.sentence == (
        "Stopped early at step 30 of 60: the loss on held-out pictures was 0.750 of the base's at step 10, and higher "
        "by more than 0.01 in the last 2 measurements"
    )
    assert StoppedEarly.from_json(decision.to_json()) == decision


def test_warmup_does_not_count_and_the_last_step_ends_no_run_early():
    flat = [1] * 6
    assert decided_at(EarlyStopping("plateau", 2, 0.0, begin=25), flat) == 50
    assert decided_at(EarlyStopping("plateau", 5, 0.0), flat, steps=50) is None


@pytest.mark.parametrize("cut", range(8))
def test_what_is_saved_decides_as_all_measurements_do_and_stays_small(cut):
    ratios = [1, 0.9, 0.95, 0.7, 0.8, 0.75, 0.72, 0.74]
    whole, before = EarlyStopping("plateau", 3, 0.0), EarlyStopping("plateau", 3, 0.0)
    assert decided_at(whole, ratios) == 60
    assert decided_at(before, ratios[:cut]) in (None, 60)
    after = EarlyStopping("plateau", 3, 0.0)
    after.restore(before.to_values())
    assert len(after.ratios) <= 4
    for number, ratio in list(enumerate(ratios))[max(0, cut - 1) :]:  # The state's own step is measured again.
        after.add(measured(10 * number, ratio), 1000)
        if after.decision is not None:
            break
    assert after.ratios == whole.ratios or cut == 8


def test_another_rule_begins_anew_and_foreign_values_are_refused():
    by_plateau = EarlyStopping("plateau", 2, 0.0, ratios={10: 0.5})
    by_held_out = EarlyStopping("held_out", 2, 0.0)
    by_held_out.restore(by_plateau.to_values())
    assert by_held_out.ratios == {}
    assert EarlyStopping().to_values() == {}
    for odd in ("x", 3, [1], {"rule": "held_out"}, {"rule": "held_out", "ratios": [[1, float("nan")]]},
                {"rule": "held_out", "ratios": [["1", 0.5]]}):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            by_held_out.restore({"stopping": odd})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__stop": "plateau", "monitor__every": 0}, r"monitor\.every = 0 turns off"),
        ({"train__stop": "held_out"}, r"needs held-out pictures; set data\.validation_share"),
        ({"train__stop": "held_out", "monitor__every": 0, "data__validation_share": 0.2}, "turns off"),
        ({"train__stop": "sometimes"}, "train.stop"),
        ({"train__stop_patience": 0}, "train.stop_patience"),
        ({"train__stop_tolerance": -0.1}, "train.stop_tolerance"),
    ],
)
def test_what_cannot_decide_is_refused(configure, changes, message):
    with pytest.raises(ConfigError, match=message):
        configure(**changes)


def test_a_validation_folder_of_one_concept_is_enough(configure, tmp_path, pictures):
    values = configure().model_dump(mode="json", exclude_none=True)
    concepts = [Concept(folder=pictures, validation_share=0.2).to_json(), {"folder": str(tmp_path)}]
    parsed = type(configure()).parse(values, "test", {"train.stop": "held_out", "concepts": concepts})
    assert parsed.train.stop == "held_out"


def test_a_folder_of_one_picture_holds_none_out_and_is_refused(configure, tmp_path, pictures):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((pictures / "0.png").read_bytes())
    config = configure(data__folder=str(tmp_path / "one"), data__validation_share=0.5, train__stop="held_out")
    with pytest.raises(ConfigError, match="no picture is held out"):
        train_in_process(config, tmp_path / "run")


@pytest.fixture(scope="module")
def plain():
    """Filled by the first test that trains without stopping."""
    return {}


def unstopped(configure, folder, plain):
    """A run of the same settings that does not stop, with a checkpoint of every step."""
    if not plain:
        settings = STILL | {"train__stop": "never", "checkpoint__every": 1}
        _, events, output = train_in_process(configure(**settings), folder / "unstopped")
        plain.update(events=events, output=output)
    return plain["output"]


def test_a_plateau_ends_the_run_as_its_last_step_would(configure, tmp_path, plain):
    settings = {"sample__every": 4, "sample__prompts": ["a red house"], "sample__steps": 1}
    settings |= {"train__steps": 200, "monitor__images": 1, "monitor__timesteps": 1}  # All images are measured last.
    finished, events, output = train_in_process(configure(**STILL, **settings), tmp_path / "run")
    assert finished and [event.step for event in events_of(StepDone, events)] == [1, ENDS_AT]
    assert events_of(RunStarted, events)[0].stop == "plateau"
    (decision,) = events_of(StoppedEarly, events)
    ratios = {event.step: loss_ratio(read_pictures(event.pictures)) for event in events_of(Measured, events)}
    assert (decision.step, decision.steps, decision.rule) == (ENDS_AT, 200, "plateau")
    assert (decision.best_step, decision.best) == (0, ratios[0])
    assert decision.ratios == [[1, ratios[1]], [2, ratios[2]]]
    assert [event.step for event in events_of(SampleReady, events)] == [0, ENDS_AT]
    assert [event.step for event in events_of(CheckpointSaved, events)] == [ENDS_AT] == [newest_step(output.states)]
    assert [len(event.pictures) for event in events_of(Measured, events)] == [1, 1, 1, 6]
    assert type(events[-1]) is RunFinished and events[-1].step == ENDS_AT
    assert read_metadata(output.adapter)["ss_steps"] == str(ENDS_AT)
    assert_equal_files(output.adapter, unstopped(configure, tmp_path, plain).checkpoint(ENDS_AT))


def test_held_out_pictures_that_rise_end_the_run(configure, tmp_path):
    """A rate far too high makes all losses rise."""
    settings = STILL | {"train__stop": "held_out", "train__learning_rate": 0.5, "data__validation_share": 0.3}
    finished, events, _ = train_in_process(configure(**settings), tmp_path / "run")
    (decision,) = events_of(StoppedEarly, events)
    ratios = {event.step: loss_ratio(read_pictures(event.pictures), True) for event in events_of(Measured, events)}
    assert finished and decision.rule == "held_out"
    assert all(ratio > ratios[decision.best_step] + 0.01 for _, ratio in decision.ratios)
    assert [ratio for _, ratio in decision.ratios] == [ratios[decision.step - 1], ratios[decision.step]]


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize(
    ("at", "every"), [(StepDone, 4), (Measured, 1), (StoppedEarly, 1), (CheckpointSaved, 4), (RunFinished, 1)]
)
def test_a_run_killed_at_its_end_ends_at_the_same_step_with_the_same_bits(configure, tmp_path, plain, at, every):
    config, events = configure(**STILL | {"checkpoint__every": every}), []

    def die(event):
        events.append(event)
        if type(event) is at and event.step == ENDS_AT:
            raise Killed

    with pytest.raises(Killed):
        train(replace(train_job(config, tmp_path), on_event=die))
    finished, again, output = train_in_process(config, tmp_path / "run")
    assert finished and events_of(RunFinished, again)[0].step == ENDS_AT
    (decision,) = events_of(StoppedEarly, again)
    assert (decision.step, decision.best_step, [step for step, _ in decision.ratios]) == (ENDS_AT, 0, [1, ENDS_AT])
    assert {decision.ratios[1][1]} == {loss_ratio(read_pictures(event.pictures)) for event in
                                       events_of(Measured, [*events, *again]) if event.step == ENDS_AT}  # fmt: skip
    assert_equal_files(output.adapter, unstopped(configure, tmp_path, plain).checkpoint(ENDS_AT))


def test_a_run_that_stopped_early_is_trained_further_only_if_that_is_asked_for(configure, tmp_path, plain):
    _, first, output = train_in_process(configure(**STILL), tmp_path / "run")
    finished, again, _ = train_in_process(configure(**STILL), tmp_path / "run")
    assert finished and not events_of(StepDone, again)
    assert events_of(StoppedEarly, again)[0].ratios == events_of(StoppedEarly, first)[0].ratios
    finished, on, _ = train_in_process(configure(**STILL | {"train__stop": "never"}), tmp_path / "run")
    assert finished and [event.step for event in events_of(StepDone, on)] == list(range(ENDS_AT + 1, STEPS + 1))
    assert any("train.stop = never for plateau" in event.message for event in events_of(Notice, on))
    assert_equal_files(output.adapter, unstopped(configure, tmp_path, plain).adapter)


def test_a_stop_by_a_person_is_no_end_and_the_run_decides_later(configure, tmp_path):
    _, events, _ = train_in_process(configure(**STILL), tmp_path / "run", stop_after=ENDS_AT - 1)
    assert not events_of(StoppedEarly, events)
    _, events, _ = train_in_process(configure(**STILL), tmp_path / "run")
    assert [event.step for event in events_of(StoppedEarly, events)] == [ENDS_AT]


def test_a_run_measures_often_enough_to_decide_and_says_what_that_costs(configure, tmp_path):
    """Six steps are too short for measurements that are not asked for."""
    settings = {"train__stop": "plateau", "train__stop_patience": 1, "schedule__name": "cosine"}
    assert least_measurements(configure(**settings).train) == 4
    _, events, _ = train_in_process(configure(**settings), tmp_path / "run")
    assert len(events_of(Measured, events)) >= 3
    told = [event.message for event in events_of(Notice, events)]
    assert any("it measures every 2 steps, about" in message for message in told)
    assert any("a cosine rate is still high where a run stops early" in message for message in told)


def test_too_few_measurements_to_decide_are_told():
    image = MeasuredImage("0.png", View(Example(Path("0.png"), "", 64, 64), ImageSize(64, 64)), "")
    plan, slow = MeasuringPlan([image], every=3, timesteps=4), Schedule(name="cosine", warmup_steps=4)
    [told] = stopping_notices(Train(stop="plateau"), Schedule(name="cosine"), plan, 9)
    assert "never decides in 9 steps: it takes more than 3 measurements, and there are 3" in told
    assert f"about {(4 + 1) * 4 / (12 * 3):.0%} of its work" in next(
        stopping_notices(Train(stop="plateau"), Schedule(), plan, 12)
    )
    assert "there are 2" in next(stopping_notices(Train(stop="plateau"), slow, plan, 12))
    assert not list(stopping_notices(Train(), slow, plan, 9))
