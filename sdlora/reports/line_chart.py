"""Line charts as SVG text, readable in light and dark and without telling colours apart.

Each line has a colour and a shape of marker. Each colour has a contrast of 3:1 or more on white and on the page's dark.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#4f6bed", "#d2691e", "#0f8f86", "#c2489a", "#8a7a1f", "#2b8fd0", "#d0453e", "#7b8190")
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "M0,-5L4.6,3.4H-4.6Z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0Z",
    "M0,5L4.6,-3.4H-4.6Z",
    "M-1.5,-4.8H1.5V-1.5H4.8V1.5H1.5V4.8H-1.5V1.5H-4.8V-1.5H-1.5Z",
    "M-2.6,-4.6L2.6,-4.6L5,0L2.6,4.6L-2.6,4.6L-5,0Z",
    "M-4.6,-4.6L0,-1.6L4.6,-4.6L1.6,0L4.6,4.6L0,1.6L-4.6,4.6L-1.6,0Z",
)
"""Shapes around 0, 0 as SVG paths: disc, square, triangle, diamond, triangle down, plus, hexagon, star."""
MOST_LINES = min(len(COLOURS), len(MARKERS))
"""Runs that can be told apart."""
MARKS = 4
"""Markers on a line, beside the one at its end."""
LEAST_SPAN, LEAST_NUMBER = 1e-9, 1e-100
"""Values that differ by less, relative to their size, or at all, count as equal."""
WIDTH, HEIGHT = 480, 264
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 42
"""Margins around the plot."""


class Line(NamedTuple):
    """A line: its name, ascending steps with values, the number of its colour and marker, and whether it is dashed."""

    name: str
    points: Sequence[tuple[int, float]]
    style: int
    dashed: bool = False


def line_chart(title: str, lines: Sequence[Line], y_label: str, x_label: str = "step") -> str:
    """Return a chart of ``lines`` as an SVG element; "" if they have no points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    last = max(line.points[-1][0] for line in lines)
    values = [value for line in lines for _, value in line.points]
    x_ticks, y_ticks = ticks(0, max(last, 1), 5), ticks(min(values), max(values), 5)
    scale = _Scale(0, max(last, 1), min(y_ticks[0], *values), max(y_ticks[-1], *values))
    told = "; ".join(f"{line.name}: {line.points[-1][1]:.4g} at step {line.points[-1][0]}" for line in lines)
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(f'{title}. {told}', quote=True)}'>"
        f"{_grid(scale, x_ticks, y_ticks)}{_labels(x_label, y_label)}"
        f"{''.join(_line(line, scale) for line in lines)}</svg>"
    )


def swatch(style: int) -> str:
    """Return a piece of a line with its marker, for a legend, as an SVG element."""
    colour = COLOURS[style]
    return (
        "<svg class='swatch' viewBox='-14 -7 28 14' width='28' height='14' aria-hidden='true'>"
        f"<path d='M-14,0H14' stroke='{colour}' stroke-width='2'/><path d='{MARKERS[style]}' fill='{colour}'/></svg>"
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers that span ``low`` to ``high``."""
    if high - low <= max(LEAST_SPAN * max(abs(low), abs(high)), LEAST_NUMBER):
        margin = abs(low) / 2 if abs(low) > LEAST_NUMBER else 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= rough)
    first, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, end + 1)]


class _Scale(NamedTuple):
    left: float
    right: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def _grid(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for value, text in zip(y_ticks, _tick_texts(y_ticks), strict=True):
        y = scale.y(value)
        parts.append(
            f"<path class='grid' d='M{LEFT},{y:.1f}H{WIDTH - RIGHT}'/>"
            f"<text x='{LEFT - 7}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"
        )
    for step, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        if step <= scale.right and step == round(step):
            x = scale.x(step)
            parts.append(
                f"<path class='grid' d='M{x:.1f},{HEIGHT - BOTTOM}v4'/>"
                f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 17}' text-anchor='middle'>{text}</text>"
            )
    return "".join(parts)


def _labels(x_label: str, y_label: str) -> str:
    return (
        f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{escape(x_label)}</text>"
        f"<text x='{LEFT - 7}' y='12' text-anchor='end'>{escape(y_label)}</text>"
    )


def _line(line: Line, scale: _Scale) -> str:
    """Return a line with markers, which are spread differently for each style so that equal lines show all of them."""
    places = [(scale.x(step), scale.y(value)) for step, value in line.points]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    colour, dash = COLOURS[line.style], " stroke-dasharray='7 4'" if line.dashed else ""
    offset = (line.style + 0.5) / MOST_LINES
    marked = {round((part + offset) * (len(places) - 1) / MARKS) for part in range(MARKS)} | {len(places) - 1}
    marks = "".join(
        f"<path d='{MARKERS[line.style]}' transform='translate({places[at][0]:.1f} {places[at][1]:.1f})'/>"
        for at in sorted(marked)
        if at < len(places)
    )
    return (
        f"<g><title>{escape(line.name)}</title><path d='{path}' fill='none' stroke='{colour}' stroke-width='2' "
        f"stroke-linejoin='round'{dash}/><g fill='{colour}'>{marks}</g></g>"
    )


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Return all ticks of an axis in one notation: ``0.05``, ``20k`` or ``2.5e-4``."""
    largest = max(map(abs, values))
    if largest < 1e-3 or largest >= 1e7:
        parts = [f"{value:.3e}".partition("e") for value in values]
        return [f"{float(number):g}e{int(power)}" if float(number) else "0" for number, _, power in parts]
    return [f"{value / 1000:g}k" if largest >= 10_000 and value else f"{value:.6g}" for value in values]
