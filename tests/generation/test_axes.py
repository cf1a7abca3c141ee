"""Values of axes, in the notation of A1111's X/Y/Z plot."""

import pytest

from sdlora.errors import ConfigError
from sdlora.generation.axes import AXIS_TYPES, parse_axis


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("scale", "0, 0.5, 1", ["0", "0.5", "1"]),
        ("scale", "0-1 (+0.25)", ["0", "0.25", "0.5", "0.75", "1"]),
        ("scale", "0-1 [5]", ["0", "0.25", "0.5", "0.75", "1"]),
        ("scale", "-1 - 1 (+1), 1.5", ["-1", "0", "1", "1.5"]),
        ("scale", "1-0 (-0.5)", ["1", "0.5", "0"]),
        ("scale", "0-0.3 (+0.1)", ["0", "0.1", "0.2", "0.3"]),
        ("seed", "1-3, 7", ["1", "2", "3", "7"]),
        ("seed", "0-9 [4]", ["0", "3", "6", "9"]),
        ("seed", "9007199254740991", ["9007199254740991"]),
        ("cfg", "7, 7.0", ["7"]),
        ("sampler", "euler A, dpm++ 2m karras", ["Euler a", "DPM++ 2M Karras"]),
        ("replace", 'red, "a, b", blue', ["red", "a, b", "blue"]),
        ("prompt", "a cat, on sand\n\n a dog ", ["a cat, on sand", "a dog"]),
        ("checkpoint", "", ["100", "250", "400"]),
        ("checkpoint", "all", ["100", "250", "400"]),
        ("checkpoint", "400, 100", ["400", "100"]),
        ("", "whatever", [""]),
    ],
)
def test_values_are_read_as_a1111_reads_them(kind, text, values):
    assert list(parse_axis(kind, text, [100, 250, 400]).values) == values


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("scale", "a lot", "scale: 'a lot' is no number and no range"),
        ("scale", "nan", "no number"),
        ("scale", "", "at least one value, such as"),
        ("scale", "0-1 (-0.1)", "leads nowhere"),
        ("scale", "0-1 (+0)", "leads nowhere"),
        ("scale", "0-1 (+0.000001)", "at most 200"),
        ("scale", "0-1 [100000]", "at most 200|1 to 200"),
        ("seed", "1.5", "whole numbers"),
        ("seed", "-2", "out of range; give 0 to"),
        ("steps", "0", "give 1 to 1000"),
        ("sampler", "Eulr", "Euler"),
        ("replace", "red", "what is to be replaced"),
        ("prompt", "\n", "at least one value"),
        ("checkpoint", "300", "none was saved at step 300; there are 100, 250, 400"),
        ("checkpont", "", "did you mean checkpoint"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_that_names_the_axis(kind, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_axis(kind, text, [100, 250, 400])
    assert "\n" not in str(caught.value)


def test_every_kind_begins_with_values_that_can_be_read():
    assert all(len(parse_axis(name, kind.start).values) > 1 for name, kind in AXIS_TYPES.items() if kind.start)
