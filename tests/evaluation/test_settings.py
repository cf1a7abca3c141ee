"""Settings of an evaluation: what they admit."""

import pytest

from sdlora.errors import ConfigError
from sdlora.evaluation.settings import EvaluationSettings


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
