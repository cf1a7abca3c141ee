"""Records of what a run measures: ratios, and the way into an event and back."""

import json
import math
from statistics import stdev

import pytest

from sdlora.events import Event, Measured
from sdlora.signals import (
    LEAST_DEVIATION,
    BlockUpdate,
    PictureLoss,
    as_values,
    loss_ratio,
    odd_ones_first,
    ratios_by_time,
    read_pictures,
    read_updates,
    scalars,
)

LEARNT = PictureLoss("a.png", (0.4, 0.1), (0.2, 0.1))
HARDLY = PictureLoss("b.png", (0.4, 0.1), (0.4, 0.1))
HELD_OUT = PictureLoss("c.png", (0.2, 0.2), (0.3, 0.1), held_out=True)
LAST_ALONE = PictureLoss("d.png", (1.0, 1.0), (0.1, 0.1), always=False)
ALL = [LEARNT, HARDLY, HELD_OUT, LAST_ALONE]


def test_every_timestep_counts_alike_and_only_pictures_of_every_measurement_are_in_the_curve():
    assert LEARNT.ratio == (0.5 + 1) / 2
    assert loss_ratio(ALL) == (0.75 + 1) / 2
    assert ratios_by_time(ALL) == [0.75, 1.0]
    assert loss_ratio(ALL, held_out=True) == pytest.approx(1.0)
    assert loss_ratio([LEARNT], held_out=True) is None and ratios_by_time([], held_out=True) == []


def test_pictures_that_stand_apart_at_some_timestep_come_first():
    base, logs = (1.0, 1.0), {"usual": (-1.0, -2.0), "other": (-1.2, -2.1), "odd": (-1.1, -1.0), "third": (-0.9, -2.2)}
    pictures = [PictureLoss(name, base, tuple(map(math.exp, each))) for name, each in logs.items()]
    found = odd_ones_first([*pictures, HELD_OUT])
    assert [one.name for one, _ in found] == ["odd", "third", "other", "usual"]
    others = [-2.0, -2.1, -2.2]
    assert found[0][1] == pytest.approx((2.1 - 1.0) / (stdev(others) + LEAST_DEVIATION))
    assert odd_ones_first([]) == []
    assert odd_ones_first([PictureLoss("none", base, (0.0, 0.0)), LEARNT])[0][1] == 0
    alike = [PictureLoss(str(number), base, (0.5, 0.5)) for number in range(4)]
    assert [apart for _, apart in odd_ones_first(alike)] == pytest.approx([0] * 4)


def test_records_come_back_from_the_line_of_their_event():
    updates = [BlockUpdate("mid", 0.5, 3.25)]
    event = Measured(step=3, times=[250, 750], pictures=as_values(ALL), updates=as_values(updates))
    read = Event.from_json(event.to_json())
    assert read == event
    assert read_pictures(read.pictures) == ALL and read_updates(read.updates) == updates


def test_a_tracker_gets_numbers_by_name():
    found = scalars(ALL, [BlockUpdate("mid", 0.5, 3.25)])
    assert found == {
        "loss_ratio/train": 0.875, "loss_ratio/held_out": pytest.approx(1.0), "update_norm/mid": 0.5,
        "effective_rank/mid": 3.25,
    }  # fmt: skip


FINE = {"name": "a", "base": [1.0], "adapted": [0.5]}
DAMAGED = [
    None, 3, "x", {}, [None], [[]], [{"name": "a"}], [FINE | {"name": 3}], [FINE | {"base": [0.0]}],
    [FINE | {"base": [1.0, 2.0]}], [FINE | {"base": "1"}], [FINE | {"adapted": [-1.0]}], [FINE | {"adapted": [True]}],
    [FINE | {"adapted": [float("nan")]}], [FINE | {"adapted": [10**400]}], [FINE | {"base": [1.0] * 2000}],
]  # fmt: skip


@pytest.mark.parametrize("values", DAMAGED, ids=lambda value: repr(value)[:40])
def test_what_is_no_record_is_left_out(values):
    assert read_pictures(values) == [] and read_updates(values) == []
    assert read_pictures([*values, FINE] if isinstance(values, list) else [FINE]) == [PictureLoss("a", (1.0,), (0.5,))]
    assert json.dumps(as_values(read_pictures([FINE | {"held_out": "yes", "always": 0}])))


def test_an_update_without_numbers_is_left_out():
    assert read_updates([{"block": "mid", "norm": 1}, {"block": "up 1", "norm": 2, "rank": 1.5}, {"block": 1}]) == [
        BlockUpdate("up 1", 2.0, 1.5)
    ]
