"""Bars with their quartiles, and marks for what was to be reached and for the floor."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, LABELS, VALUES, TOP, ROW, FOOT = 1000, 300, 190, 54, 30, 40
PAPER, INK, FAINT, BAR, BOUND, FLOOR = "#ffffff", "#1e1e24", "#cdcdd4", "#3d6bb3", "#cb3a2c", "#2f8f4e"


@dataclass(frozen=True)
class Bar:
    """One figure: what it is of, the figure, and if known its quartiles, the bound it is held against, its floor."""

    label: str
    value: float
    quartiles: Sequence[float] = ()
    bound: float | None = None
    floor: float | None = None


def bars(title: str, unit: str, rows: Sequence[Bar]) -> Image.Image:
    """A bar a row from 0 on one scale; red a bound, green a floor."""
    picture = Image.new("RGB", (WIDTH, TOP + ROW * len(rows) + FOOT), PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    most = max([value for row in rows for value in (row.value, *row.quartiles, row.bound or 0.0)] or [1.0]) or 1.0
    room = WIDTH - LABELS - VALUES

    def across(value: float) -> float:
        return LABELS + room * value / most

    draw.text((12, 14), title, INK, font)
    for number, row in enumerate(rows):
        top = TOP + number * ROW
        middle = top + ROW / 2 - 3
        draw.text((12, top + 3), row.label, INK, small)
        draw.rectangle((LABELS, top + 4, across(row.value), top + ROW - 10), fill=BAR)
        if row.quartiles:
            draw.line((across(row.quartiles[0]), middle, across(row.quartiles[1]), middle), fill=INK, width=3)
        for value, colour in ((row.floor, FLOOR), (row.bound, BOUND)):
            if value is not None:
                draw.line((across(value), top, across(value), top + ROW - 6), fill=colour, width=3)
        draw.text((WIDTH - VALUES + 12, top + 3), f"{row.value:.4g} {unit}", INK, small)
    draw.line((LABELS, TOP - 6, LABELS, TOP + ROW * len(rows)), fill=FAINT)
    marks = [("black: quartiles", any(row.quartiles for row in rows))]
    marks += [("red: to reach", any(row.bound is not None for row in rows))]
    marks += [("green: floor", any(row.floor is not None for row in rows))]
    draw.text((12, TOP + ROW * len(rows) + 10), "; ".join(text for text, there in marks if there), INK, small)
    return picture
