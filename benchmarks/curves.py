"""Lines over time, and the height that was to be reached."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 900, 460, 70, 30, 60, 60
PAPER, INK, FAINT, GOAL = "#ffffff", "#1e1e24", "#e2e2e8", "#cb3a2c"
COLOURS = ("#3d6bb3", "#d98b21", "#2f8f4e", "#7d4fb0")
TICKS, LEGEND = 6, 180

Points = Sequence[tuple[float, float]]


def curves(title: str, across: str, lines: Mapping[str, Points], goal: float) -> Image.Image:
    """A line for each of ``lines`` (x, y), x from 0 to the right, and ``goal`` as a red line across."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    every = [point for points in lines.values() for point in points]
    most = max(x for x, _ in every)
    low, high = min([y for _, y in every] + [goal]), max([y for _, y in every] + [goal])
    low, high = low - (high - low) / 10, high + (high - low) / 10

    def at(x: float, y: float) -> tuple[float, float]:
        right, down = x / most, (high - y) / (high - low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - FOOT)

    draw.text((12, 12), title, INK, font)
    for tick in range(TICKS):
        x, y = most * tick / (TICKS - 1), low + (high - low) * tick / (TICKS - 1)
        draw.line((at(0, y), at(most, y)), FAINT)
        draw.text((12, at(0, y)[1] - 8), f"{y:.2f}", INK, small)
        draw.text((at(x, low)[0] - 12, HEIGHT - FOOT + 6), f"{x:.0f}", INK, small)
    draw.text((LEFT, HEIGHT - 26), across, INK, small)
    draw.line((at(0, goal), at(most, goal)), GOAL, width=2)
    for place, ((label, points), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        draw.line([at(*point) for point in points], colour, width=3)
        for x, y in points:
            draw.ellipse((at(x, y)[0] - 3, at(x, y)[1] - 3, at(x, y)[0] + 3, at(x, y)[1] + 3), colour)
        draw.text((WIDTH - LEGEND * (len(lines) - place), HEIGHT - 26), label, colour, small)
    return picture
