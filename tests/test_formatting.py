"""Text for people: sizes in binary units, durations, near names."""

import pytest

from sdlora.formatting import did_you_mean, format_bytes, format_duration


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (2**30 - 1, "1.00 GiB"), (12_000, "11.7 KiB"), (5 << 20, "5.00 MiB"),
        (200_000_000, "191 MiB"), (8 * 2**30, "8.00 GiB"), (3.4e9, "3.17 GiB"),
    ],
)  # fmt: skip
def test_sizes_are_given_in_binary_units(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (5.4, "5 s"),
        (60, "1:00 min"),
        (3725, "1:02 h"),
        (-1, "–"),
        (float("inf"), "–"),
        (float("nan"), "–"),
    ],
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text


def test_near_names_are_proposed_whatever_their_case():
    names = ["rank", "Alpha", "alpha_2"]
    assert did_you_mean("rnak", names, "take one of them") == "did you mean rank?"
    assert did_you_mean("ALPHA", names, most=3) == "did you mean Alpha or alpha_2?"
    assert did_you_mean("zzz", names, "take one of them") == "take one of them"
    assert did_you_mean("zzz", names) == ""
