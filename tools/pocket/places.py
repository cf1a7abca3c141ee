"""The places: each function draws the background, muted so that the object stands out, and says where the ground is."""

import numpy as np

from tools.pocket.geometry import Colour, Shape, curve, ellipse, mix, polygon, rect, stroke

Backdrop = tuple[list[Shape], float | None]
"""The shapes and the height of the horizon; None where things float."""


def _jitter(colour: Colour, rng: np.random.Generator, amount: float = 6) -> Colour:
    return tuple(float(np.clip(c + j, 0, 255)) for c, j in zip(colour, rng.normal(0, amount, 3), strict=True))


def _back(colour: Colour, *parts: np.ndarray) -> Shape:
    return Shape(parts, colour, "background")


def _sky(rng: np.random.Generator, colours: tuple[Colour, ...], clouds: bool = True) -> list[Shape]:
    sky = _jitter(colours[rng.integers(len(colours))], rng)
    shapes = [_back(sky, rect(-0.1, -0.1, 1.1, 1.1))]
    for _ in range(rng.integers(0, 3) if clouds else 0):
        x, y, s = rng.uniform(0.05, 0.95), rng.uniform(0.06, 0.26), rng.uniform(0.05, 0.09)
        puffs = [
            ellipse(x + dx * s, y + dy * s, r * s, r * s * 0.7)
            for dx, dy, r in ((-1.1, 0.1, 0.9), (0, -0.3, 1.2), (1.1, 0.1, 0.9))
        ]
        shapes.append(_back(mix(sky, (255, 255, 255), 0.55), *puffs))
    return shapes


def _hills(rng: np.random.Generator, y: float, height: float, colour: Colour) -> Shape:
    x = np.linspace(-0.1, 1.1, 40)
    line = y - height * (0.5 + 0.5 * np.sin(x * rng.uniform(4, 8) + rng.uniform(0, 6.3)))
    return _back(colour, np.concatenate([np.stack([x, line], 1), polygon((1.1, 1.1), (-0.1, 1.1))]))


def _ground(rng: np.random.Generator, y: float, colour: Colour, bow: float = 0.015) -> Shape:
    return _hills(rng, y + bow, 2 * bow, colour)


def grass(rng: np.random.Generator) -> Backdrop:
    """Pale green meadow with tufts under a blue sky and distant hills."""
    y, green = rng.uniform(0.5, 0.64), _jitter((168, 205, 122), rng)
    shapes = _sky(rng, ((188, 220, 240), (208, 228, 238), (236, 226, 200)))
    if rng.random() < 0.7:
        shapes.append(_hills(rng, y + 0.02, rng.uniform(0.06, 0.14), mix(green, (150, 190, 190), 0.45)))
    shapes.append(_ground(rng, y, green))
    for _ in range(rng.integers(4, 8)):
        tx, ty, s = rng.uniform(0, 1), rng.uniform(y + 0.08, 0.98), rng.uniform(0.02, 0.035)
        tuft = polygon(
            (tx - s, ty),
            (tx - s, ty - 1.5 * s),
            (tx - 0.3 * s, ty - 0.5 * s),
            (tx, ty - 2 * s),
            (tx + 0.3 * s, ty - 0.5 * s),
            (tx + s, ty - 1.5 * s),
            (tx + s, ty),
        )
        shapes.append(_back(mix(green, (70, 130, 60), 0.4), tuft))
    return shapes, y


def sand(rng: np.random.Generator) -> Backdrop:
    """Dunes under a warm sky, often with a sun."""
    y, dune = rng.uniform(0.5, 0.64), _jitter((234, 210, 160), rng)
    shapes = _sky(rng, ((250, 232, 205), (200, 226, 236), (246, 214, 190)), clouds=False)
    if rng.random() < 0.6:
        shapes.append(_back((255, 240, 190), ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.25), 0.07, 0.07)))
    shapes.append(_hills(rng, y + 0.02, rng.uniform(0.06, 0.16), mix(dune, (200, 160, 120), 0.4)))
    shapes.append(_ground(rng, y, dune, 0.025))
    for _ in range(rng.integers(2, 5)):
        x, ty, w = rng.uniform(0, 1), rng.uniform(y + 0.1, 0.97), rng.uniform(0.08, 0.16)
        shapes.append(
            _back(
                mix(dune, (190, 145, 95), 0.3),
                stroke(curve((x - w, ty), (x, ty - 0.02), (x + w, ty), closed=False), 0.012),
            )
        )
    return shapes, y


def snow(rng: np.random.Generator) -> Backdrop:
    """White ground and peaks, flakes in a grey-blue sky."""
    y, white = rng.uniform(0.5, 0.64), _jitter((228, 236, 246), rng, 3)
    shapes = _sky(rng, ((150, 176, 204), (168, 184, 206), (176, 178, 208)), clouds=False)
    for _ in range(rng.integers(1, 3)):
        x, w, h = rng.uniform(0, 1), rng.uniform(0.25, 0.4), rng.uniform(0.2, 0.35)
        shapes.append(_back((186, 202, 222), polygon((x - w, y + 0.05), (x, y - h), (x + w, y + 0.05))))
        shapes.append(
            _back(
                (240, 244, 250),
                polygon((x - w * 0.35, y - h * 0.6), (x, y - h), (x + w * 0.35, y - h * 0.6), (x, y - h * 0.45)),
            )
        )
    shapes.append(_ground(rng, y, white, 0.025))
    flakes = [ellipse(*rng.uniform((0, 0), (1, y)), 0.013, 0.013) for _ in range(rng.integers(8, 16))]
    drifts = [ellipse(rng.uniform(0, 1), rng.uniform(y + 0.1, 1), rng.uniform(0.1, 0.2), 0.02) for _ in range(3)]
    return [*shapes, _back(mix(white, (170, 190, 220), 0.45), *drifts), _back((250, 252, 255), *flakes)], y


def water(rng: np.random.Generator) -> Backdrop:
    """Teal-blue water to the horizon, with rows of pale waves."""
    y, blue = rng.uniform(0.4, 0.56), _jitter((122, 184, 206), rng)
    shapes = _sky(rng, ((206, 230, 242), (240, 226, 208), (214, 222, 240)))
    shapes.append(_back(blue, rect(-0.1, y, 1.1, 1.1)))
    shapes.append(_back(mix(blue, (70, 130, 170), 0.35), rect(-0.1, y, 1.1, y + 0.035)))
    for row in np.arange(y + 0.1, 1.0, 0.11):
        phase, parts = rng.uniform(0, 0.3), []
        for x in np.arange(-0.1, 1.1, 0.3) + phase:
            wave = curve(
                (x - 0.08, row),
                (x - 0.04, row - 0.018),
                (x, row),
                (x + 0.04, row - 0.018),
                (x + 0.08, row),
                closed=False,
            )
            parts.append(stroke(wave, 0.014))
        shapes.append(_back(mix(blue, (255, 255, 255), 0.5), *parts))
    return shapes, y


def city(rng: np.random.Generator) -> Backdrop:
    """A grey street in front of a row of buildings with windows."""
    y = rng.uniform(0.58, 0.68)
    shapes = _sky(rng, ((214, 216, 226), (226, 214, 210), (200, 212, 226)), clouds=False)
    walls = ((176, 168, 176), (190, 176, 166), (160, 168, 182), (182, 184, 188))
    x = rng.uniform(-0.15, 0.0)
    while x < 1.0:
        w, top, wall = rng.uniform(0.15, 0.26), rng.uniform(0.1, 0.4), _jitter(walls[rng.integers(4)], rng)
        shapes.append(_back(wall, rect(x, top, x + w, y + 0.03)))
        lit = (250, 236, 190) if rng.random() < 0.5 else mix(wall, (110, 120, 145), 0.6)
        panes = [
            rect(x + w * (c - 0.11), r, x + w * (c + 0.11), r + 0.045)
            for c in (0.28, 0.72)
            for r in np.arange(top + 0.05, y - 0.06, 0.1)
        ]
        shapes.append(_back(lit, *panes))
        x += w + rng.choice([0.0, 0.02])
    street = _jitter((142, 142, 150), rng)
    shapes.append(_back(mix(street, (255, 255, 255), 0.35), rect(-0.1, y, 1.1, y + 0.06)))
    shapes.append(_back(street, rect(-0.1, y + 0.05, 1.1, 1.1)))
    dashes = [rect(x, 0.9, x + 0.13, 0.925) for x in np.arange(rng.uniform(-0.2, 0.0), 1.1, 0.26)]
    return [*shapes, _back(mix(street, (255, 255, 255), 0.6), *dashes)], y


def space(rng: np.random.Generator) -> Backdrop:
    """Deep violet, stars, a planet and sometimes its ring."""
    dark = _jitter((66, 54, 112), rng)
    shapes = [_back(dark, rect(-0.1, -0.1, 1.1, 1.1))]
    shapes.append(
        _back(
            mix(dark, (120, 80, 160), 0.4),
            ellipse(rng.uniform(0, 1), rng.uniform(0, 1), 0.5, 0.25, rng.uniform(0, 3.1)),
        )
    )
    stars = [ellipse(*rng.uniform(0, 1, 2), r, r) for r in rng.uniform(0.007, 0.014, rng.integers(16, 28))]
    shapes.append(_back((240, 236, 215), *stars))
    x, y, r = (
        rng.choice([0.14, 0.86]) + rng.uniform(-0.06, 0.06),
        rng.choice([0.15, 0.85]) + rng.uniform(-0.06, 0.06),
        rng.uniform(0.09, 0.15),
    )
    planet = ((176, 150, 130), (130, 160, 176), (170, 140, 176))[rng.integers(3)]
    shapes.append(_back(planet, ellipse(x, y, r, r)))
    shapes.append(
        _back(
            mix(planet, dark, 0.35),
            ellipse(x + 0.3 * r, y + 0.3 * r, 0.3 * r, 0.2 * r),
            ellipse(x - 0.3 * r, y - 0.1 * r, 0.35 * r, 0.18 * r),
        )
    )
    if rng.random() < 0.5:
        shapes.append(_back(mix(planet, (255, 255, 255), 0.4), stroke(ellipse(x, y, 1.7 * r, 0.45 * r, -0.3), 0.016)))
    return shapes, None


PLACES = {
    "on grass": grass,
    "on sand": sand,
    "on snow": snow,
    "on water": water,
    "in the city": city,
    "in space": space,
}
