"""Settings of an evaluation: what they admit."""

import pytest

from sdlora.errors import ConfigError
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.generation.settings import LARGEST_SEED


def test_numbers_may_stand_in_one_text():
    found = EvaluationSettings.checked(scales="0.5, 1", checkpoints=["50,100", "200"])
    assert found.scales == (0.5, 1.0) and found.checkpoints == (50, 100, 200)
    assert EvaluationSettings.checked(**found.to_json()) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [("scales", ()), ("scales", "0"), ("scales", "3"), ("scales", "x"), ("scales", [0.1] * 9), ("scales", "nan"),
     ("checkpoints", "-1"), ("checkpoints", [1] * 101), ("seeds", 0), ("seeds", 17), ("steps", 0), ("cfg", -1),
     ("prompts", [""]), ("prompts", ["x"] * 25), ("sampler", "none such"), ("concept", 0), ("batch_size", 0)],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name}"):
        EvaluationSettings.checked(**{name: value})


def test_a_scale_given_twice_is_compared_once():
    assert EvaluationSettings(scales="1, 0.5, 1.0").scales == (1.0, 0.5)


def test_no_image_has_a_seed_beyond_the_largest():
    with pytest.raises(ConfigError, match="seed = "):
        EvaluationSettings.checked(seed=LARGEST_SEED, seeds=2)


def test_a_step_of_thousands_of_digits_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="checkpoints") as error:
        EvaluationSettings.checked(checkpoints=[10**5000])
    assert len(str(error.value)) < 500
