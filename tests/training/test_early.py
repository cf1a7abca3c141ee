"""Settings that a base cannot follow are refused before anything is cached or trained."""

import pytest

from sdlora.errors import ConfigError
from sdlora.events import Notice, Progress, StepDone
from tests.support.training import train_in_process

VELOCITY = {"model__prediction_type": "v_prediction", "model__zero_terminal_snr": "on"}
DRAWN = {"sample__every": 2, "sample__prompts": ["a red house"], "sample__steps": 1}
CLASS = {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 2, "prior__steps": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**VELOCITY, **DRAWN, "sample__sampler": "Heun"},
            r"^sample\.sampler 'Heun': cannot generate .*; take DPM\+\+ 2M",
        ),
        (
            {**VELOCITY, **CLASS, "prior__sampler": "Heun"},
            r"^prior\.sampler 'Heun': cannot generate .*; take DPM\+\+ 2M",
        ),
        ({**DRAWN, "sample__clip_skip": 3}, r"^sample\.clip_skip = 3: give 1 to 2"),
        ({**DRAWN, "sample__width": 65}, r"^sample\.width = 65: this model makes multiples of 64; take 64"),
        ({**DRAWN, "sample__height": 100}, r"^sample\.height = 100: .* take 128"),
    ],
)
def test_it_is_refused_in_one_sentence(settings, message, configure, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_in_process(configure(**settings), tmp_path / "run")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "settings",
    [
        {"sample__sampler": "Heun", "sample__width": 65, "sample__clip_skip": 99, "sample__every": 0},
        {"sample__sampler": "Heun", "sample__width": 65, "sample__clip_skip": 99, "sample__every": 2},
        {"prior__sampler": "Heun", "prior__weight": 0.0},
    ],
)
def test_what_is_never_drawn_is_no_hindrance(settings, configure, tmp_path):
    finished, events, _ = train_in_process(configure(**VELOCITY, **settings, train__steps=2), tmp_path / "run")
    assert finished and sum(isinstance(event, StepDone) for event in events) == 2
    assert not any("no preview" in event.message for event in events if isinstance(event, Notice))


def test_class_pictures_of_the_users_own_need_no_sampler(configure, pictures, tmp_path):
    own = {**CLASS, "prior__folder": str(pictures), "prior__sampler": "Heun"}
    finished, events, _ = train_in_process(configure(**VELOCITY, **own, train__steps=1), tmp_path / "run")
    assert finished
    assert not any(event.phase == "making class pictures" for event in events if isinstance(event, Progress))
