"""Charts: round ticks, text that is escaped, and lines that can be told apart."""

from xml.etree import ElementTree

import pytest

from sdlora.reports.line_chart import COLOURS, HEIGHT, MARKERS, MOST_LINES, WIDTH, Line, line_chart, ticks

DARK, WHITE = "#0b0f19", "#ffffff"


def luminance(colour):
    """Relative luminance of WCAG 2.2."""
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", [DARK, WHITE])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_seen_in_light_and_dark(colour, background):
    low, high = sorted([luminance(colour), luminance(background)])
    assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, 1.4.11: graphics.


def test_each_line_has_a_colour_and_a_marker_of_its_own():
    assert len(set(COLOURS)) == len(set(MARKERS)) == MOST_LINES
    chart = line_chart("t", [Line(str(n), [(0, n), (9, n)], n) for n in range(MOST_LINES)], "y")
    for colour, marker in zip(COLOURS, MARKERS, strict=True):
        assert f"stroke='{colour}'" in chart and f"d='{marker}'" in chart


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0.2, 0.29, [0.2, 0.22, 0.24, 0.26, 0.28, 0.3]),
     (1, 1, [0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6])],
)  # fmt: skip
def test_ticks_are_round_and_span_the_values(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    "values", [[0.0], [1e-320, 0.0], [1e30, -1e30], [1e29, 1e29 + 1e13], [5e-324], [1e-4] * 3, [3.0, 3.0 + 1e-15]]
)
def test_any_finite_values_are_drawn_inside(values):
    chart = line_chart("t", [Line("a", list(enumerate(values)), 0)], "y")
    root = ElementTree.fromstring(chart)
    places = [group.get("transform") for group in root.iter("path") if group.get("transform")]
    assert places
    for place in places:
        x, y = map(float, place.removeprefix("translate(").rstrip(")").split())
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert len(list(root.iter("text"))) < 30


def test_names_are_text():
    evil = "</svg><script>alert(1)</script>'\""
    root = ElementTree.fromstring(line_chart(evil, [Line(evil, [(1, 2.0)], 0)], evil))
    assert not list(root.iter("script")) and evil in root.get("aria-label")


def test_without_points_there_is_no_chart():
    assert line_chart("t", [Line("a", [], 0)], "y") == ""
