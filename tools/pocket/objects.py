"""The kinds of object: each function draws one, standing on y = 1 within about [-1, 1] x [-1, 1]."""

import itertools
from dataclasses import dataclass

import numpy as np

from tools.pocket.geometry import Colour, Shape, curve, ellipse, mix, polygon, rect, stroke

INK = (44, 38, 50)
GLASS = (196, 226, 240)
WOOD = (121, 82, 54)
CREAM = (246, 234, 210)
GREY = (150, 152, 160)
WHITE = (250, 250, 250)


@dataclass(frozen=True)
class Tones:
    """An object's colour with a darker and a lighter neighbour; `spot` stands out on all three."""

    main: Colour
    dark: Colour
    light: Colour
    spot: Colour

    @classmethod
    def of(cls, colour: Colour, rng: np.random.Generator) -> "Tones":
        main = tuple(float(np.clip(c + j, 0, 255)) for c, j in zip(colour, rng.normal(0, 5, 3), strict=True))
        pale = sum(main) / 3 > 200
        dark = mix(main, (20, 15, 45), 0.3)
        return cls(main, dark, mix(main, (255, 255, 255), 0.33), dark if pale else mix(main, (255, 252, 240), 0.8))


def _shapes(*rows: tuple) -> list[Shape]:
    """Rows of (colour, polygon, ...) are object shapes; a leading "detail" makes one a detail."""
    return [
        Shape(tuple(row[2:]), row[1], "detail") if row[0] == "detail" else Shape(tuple(row[1:]), row[0], "object")
        for row in rows
    ]


def house(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """Walls in the colour, a darker roof, door and windows."""
    w, eaves, over = rng.uniform(0.6, 0.82), rng.uniform(-0.25, 0.0), rng.uniform(0.1, 0.18)
    door = rng.uniform(-0.35, 0.35) * w
    chimney = rng.choice([-0.5, 0.5]) * w
    panes = [x for x in (-0.6 * w, 0.0, 0.6 * w) if abs(x - door) > 0.36 * w]
    rows = [
        (t.dark, rect(chimney - 0.1, -0.85, chimney + 0.1, eaves)),
        (t.main, rect(-w, eaves, w, 1)),
        (t.dark, polygon((-w - over, eaves), (rng.uniform(-0.1, 0.1), -1), (w + over, eaves))),
        ("detail", WOOD, rect(door - 0.15, 0.38, door + 0.15, 1)),
    ]
    rows += [("detail", GLASS, rect(x - 0.15, eaves + 0.25, x + 0.15, eaves + 0.55)) for x in panes]
    return _shapes(*rows)


def tree(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A brown trunk under a crown in the colour: round, or three tiers of a fir."""
    trunk = (WOOD, polygon((-0.13, 0.1), (0.13, 0.1), (0.18, 1), (-0.18, 1)))
    if rng.random() < 0.35:
        tiers = [polygon((-w, y), (0, y - 0.72), (w, y)) for w, y in ((0.78, 0.55), (0.62, 0.12), (0.44, -0.3))]
        lights = [
            polygon((-0.1 - 0.4 * i, -0.4 + 0.42 * i), (0, -0.9 + 0.43 * i), (0.0, -0.4 + 0.42 * i)) for i in range(3)
        ]
        return _shapes(
            trunk,
            *[(tone, tier) for tone, tier in zip((t.dark, t.main, t.main), tiers, strict=True)],
            ("detail", t.light, lights[0]),
        )
    turns = rng.uniform(0, 1) + np.arange(6) / 6
    size = rng.uniform(0.36, 0.46)
    blobs = [
        ellipse(0.42 * np.cos(2 * np.pi * a), -0.3 + 0.34 * np.sin(2 * np.pi * a), size, size * 0.9) for a in turns
    ]
    return _shapes(
        trunk,
        (t.main, ellipse(0, -0.3, 0.5, 0.45), *blobs),
        ("detail", t.light, ellipse(-0.28, -0.55, 0.2, 0.15, -0.5)),
        ("detail", t.dark, ellipse(0.3, -0.05, 0.22, 0.13, -0.4)),
    )


def car(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A side view: body, cabin, two windows, two wheels."""
    roof, back = rng.uniform(-0.25, -0.1), rng.uniform(-0.75, -0.6)
    body = curve(
        (-1, 0.5),
        (-0.95, 0.25),
        (-0.6, 0.17),
        (0.5, 0.17),
        (0.92, 0.3),
        (1.02, 0.55),
        (0.95, 0.74),
        (0, 0.76),
        (-0.96, 0.74),
    )
    cabin = polygon((back, 0.25), (back + 0.22, roof), (0.2, roof), (0.55, 0.25))
    wheels = [(x, 0.76) for x in (-0.55, 0.58)]
    pane = roof + 0.09
    return _shapes(
        (t.main, body, cabin),
        ("detail", GLASS, polygon((back + 0.16, 0.19), (back + 0.28, pane), (-0.2, pane), (-0.2, 0.19))),
        ("detail", GLASS, polygon((-0.1, 0.19), (-0.1, pane), (0.16, pane), (0.41, 0.19))),
        ("detail", t.dark, rect(-0.92, 0.52, 0.95, 0.6)),
        ("detail", (255, 240, 170), ellipse(0.92, 0.4, 0.08, 0.08)),
        ("detail", INK, *[ellipse(x, y, 0.24, 0.24) for x, y in wheels]),
        ("detail", GREY, *[ellipse(x, y, 0.11, 0.11) for x, y in wheels]),
    )


def boat(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A hull and two sails in the colour on a wooden mast."""
    top, bow = rng.uniform(-1, -0.85), rng.uniform(0.9, 1.0)
    return _shapes(
        (WOOD, rect(-0.04, top, 0.06, 0.5)),
        (t.light, polygon((0.12, top + 0.06), (0.12, 0.3), (0.72, 0.3))),
        (t.main, polygon((-0.08, top + 0.2), (-0.08, 0.3), (-0.66, 0.3))),
        (t.main, curve((-0.95, 0.45), (0, 0.52), (bow, 0.42), (0.62, 0.95), (0, 1.0), (-0.68, 0.95))),
        ("detail", t.spot, stroke(curve((-0.8, 0.66), (0, 0.71), (0.8, 0.64), closed=False), 0.08)),
    )


def cat(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """Sits and looks at us: pointed ears, a curled tail, whiskers."""
    tilt = rng.uniform(-0.08, 0.08)
    head, wide = -0.38, rng.uniform(0.44, 0.52)
    tail = curve((0.3, 0.85), (0.75, 0.8), (0.88, 0.4), (0.68, rng.uniform(-0.05, 0.2)), closed=False)
    eyes = [(-0.19 + tilt, head - 0.04), (0.19 + tilt, head - 0.04)]
    ears = [
        polygon((s * 0.1 + tilt, head - 0.3), (s * 0.42 + tilt, -1), (s * 0.48 + tilt, head - 0.05)) for s in (-1, 1)
    ]
    inner = [
        polygon((s * 0.23 + tilt, head - 0.3), (s * 0.38 + tilt, -0.85), (s * 0.41 + tilt, head - 0.2)) for s in (-1, 1)
    ]
    whiskers = [
        stroke(np.array([(s * 0.2 + tilt, head + 0.18), (s * 0.7 + tilt, head + 0.18 + d)]), 0.03)
        for s in (-1, 1)
        for d in (-0.06, 0.1)
    ]
    return _shapes(
        (t.dark, stroke(tail, 0.2, 0.16), ellipse(*tail[-1], 0.09, 0.09)),
        (t.main, curve((0, -0.1), (0.36, 0.15), (0.5, 0.75), (0.4, 1), (-0.4, 1), (-0.5, 0.75), (-0.36, 0.15))),
        (t.main, ellipse(tilt, head, wide, 0.42), *ears),
        ("detail", (240, 160, 170), *inner),
        ("detail", t.light, ellipse(0, 0.52, 0.23, 0.3)),
        ("detail", t.dark, ellipse(-0.24, 0.93, 0.16, 0.08), ellipse(0.24, 0.93, 0.16, 0.08)),
        ("detail", (225, 235, 120), *[ellipse(x, y, 0.12, 0.12) for x, y in eyes]),
        ("detail", INK, *[ellipse(x, y, 0.055, 0.1) for x, y in eyes]),
        ("detail", t.spot, *whiskers),
        (
            "detail",
            (240, 130, 150),
            polygon((tilt - 0.07, head + 0.11), (tilt + 0.07, head + 0.11), (tilt, head + 0.2)),
        ),
    )


def fish(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A side view: oval body, forked tail, fins, stripes, a round eye."""
    deep = rng.uniform(0.46, 0.6)
    mid = 0.3
    stripes = [
        stroke(ellipse(x - 0.2, mid, 0.22, deep * k, 0, -0.2, 0.2), 0.11) for x, k in ((0.05, 0.92), (-0.25, 0.8))
    ]
    return _shapes(
        (t.dark, polygon((-0.5, mid), (-1, mid - 0.5), (-0.86, mid), (-1, mid + 0.5))),
        (
            t.dark,
            curve((-0.3, mid - deep * 0.7), (0, mid - deep - 0.25), (0.35, mid - deep * 0.8), (0, mid - deep * 0.6)),
        ),
        (t.dark, polygon((-0.1, mid + deep * 0.8), (-0.3, mid + deep + 0.25), (0.2, mid + deep * 0.85))),
        (
            t.main,
            curve(
                (0.95, mid),
                (0.65, mid - deep * 0.75),
                (0.15, mid - deep),
                (-0.4, mid - deep * 0.55),
                (-0.68, mid),
                (-0.4, mid + deep * 0.55),
                (0.15, mid + deep),
                (0.65, mid + deep * 0.75),
            ),
        ),
        ("detail", t.spot, *stripes),
        ("detail", t.dark, polygon((0.3, mid + 0.08), (0.02, mid + 0.3), (0.1, mid + 0.02))),
        ("detail", WHITE, ellipse(0.6, mid - 0.13, 0.14, 0.14)),
        ("detail", INK, ellipse(0.63, mid - 0.13, 0.075, 0.075)),
    )


def bird(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A side view on two legs: round breast, pointed tail, wing, beak."""
    lift = rng.uniform(-0.1, 0.12)
    legs = [stroke(np.array([(x, 0.5), (x + 0.03, 0.97), (x + 0.17, 0.99)]), 0.06) for x in (-0.12, 0.14)]
    return _shapes(
        ("detail", (235, 150, 40), *legs),
        (t.dark, polygon((-0.4, 0.05), (-1, -0.12 - lift), (-0.92, 0.2 - lift), (-0.35, 0.4))),
        ("detail", (245, 170, 40), polygon((0.66, -0.62), (1.02, -0.45), (0.66, -0.33))),
        (
            t.main,
            curve(
                (-0.62, 0.1),
                (-0.2, -0.22),
                (0.12, -0.55),
                (0.4, -0.86),
                (0.72, -0.66),
                (0.72, -0.3),
                (0.58, 0.2),
                (0.2, 0.58),
                (-0.3, 0.55),
            ),
        ),
        ("detail", t.light, ellipse(0.34, 0.16, 0.18, 0.27, 0.5)),
        (
            "detail",
            t.dark,
            curve((0.15, -0.08), (0.1, 0.25), (-0.3, 0.38), (-0.72, 0.2 + lift), (-0.4, 0.02), (-0.1, -0.15)),
        ),
        ("detail", WHITE, ellipse(0.47, -0.55, 0.12, 0.12)),
        ("detail", INK, ellipse(0.5, -0.55, 0.065, 0.065)),
    )


def flower(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """Petals in the colour around a contrasting heart, on a stem with two leaves."""
    count, start, bend = int(rng.integers(5, 8)), rng.uniform(0, 1), rng.uniform(-0.12, 0.12)
    warm = t.main[0] > 200 and t.main[1] > 120 and t.main[2] < 120
    heart = (110, 62, 40) if warm else (250, 205, 60)
    stem, leaf = (84, 130, 74), (98, 146, 84)
    petals = []
    for i in range(count):
        a = 2 * np.pi * (i / count + start)
        petals.append(ellipse(0.4 * np.cos(a), -0.42 + 0.4 * np.sin(a), 0.32, 0.22, a))
    return _shapes(
        ("detail", stem, stroke(curve((0, -0.2), (bend, 0.3), (0, 1), closed=False), 0.11)),
        (
            "detail",
            leaf,
            curve((0, 0.75), (0.25, 0.4), (0.62, 0.35), (0.4, 0.68)),
            curve((0, 0.9), (-0.25, 0.55), (-0.6, 0.5), (-0.4, 0.83)),
        ),
        (t.main, *petals[::2]),
        (t.main, *petals[1::2]),
        ("detail", heart, ellipse(0, -0.42, 0.23, 0.23)),
    )


def mushroom(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A domed cap in the colour with pale spots on a cream stem."""
    wide, brim = rng.uniform(0.82, 0.98), rng.uniform(0.08, 0.2)
    cap = curve((-wide, brim), (-0.75 * wide, -0.5), (0, -0.98), (0.75 * wide, -0.5), (wide, brim), (0, brim + 0.14))
    spots = [(-0.48, -0.22, 0.13), (0.05, -0.6, 0.15), (0.5, -0.2, 0.15), (0.0, -0.1, 0.12)]
    return _shapes(
        ("detail", CREAM, curve((-0.24, 0.1), (0.24, 0.1), (0.3, 0.6), (0.36, 1), (-0.36, 1), (-0.3, 0.6))),
        ("detail", (216, 198, 168), ellipse(0, 0.26, 0.28, 0.08)),
        (t.main, cap),
        ("detail", t.spot, *[ellipse(x * wide, y + rng.uniform(-0.04, 0.04), r, r * 0.85) for x, y, r in spots]),
    )


def cup(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """A mug with a handle, a band and steam."""
    low, top = rng.uniform(0.42, 0.55), rng.uniform(-0.4, -0.25)
    steam = [
        stroke(
            curve((x, top - 0.12), (x + 0.09, top - 0.28), (x - 0.07, top - 0.42), (x + 0.04, -0.98), closed=False),
            0.07,
        )
        for x in (-0.25, 0.1)
    ]
    band = (top + 0.45, top + 0.68)
    return _shapes(
        ("detail", (226, 228, 234), *steam),
        (t.dark, stroke(ellipse(0.55, 0.25, 0.38, 0.36, 0, -0.28, 0.28), 0.15)),
        (
            t.main,
            curve(
                (-0.66, top), (-0.62, 0.4), (-low, 0.94), (0, 1), (low, 0.94), (0.62, 0.4), (0.66, top), (0, top + 0.1)
            ),
        ),
        ("detail", t.spot, polygon((-0.65, band[0]), (0.65, band[0]), (0.62, band[1]), (-0.62, band[1]))),
        (t.dark, ellipse(0, top, 0.66, 0.13)),
        ("detail", (92, 58, 40), ellipse(0, top + 0.02, 0.54, 0.085)),
    )


def rocket(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """Upright: a pointed body in the colour, dark fins, a round window, a small flame."""
    wide = rng.uniform(0.3, 0.4)
    flame = [curve((-w, 0.68), (w, 0.68), (0, y)) for w, y in ((0.2, 1.0), (0.11, 0.88))]
    return _shapes(
        ("detail", (245, 140, 50), flame[0]),
        ("detail", (255, 225, 110), flame[1]),
        (
            t.dark,
            polygon((-wide * 0.8, 0.15), (-0.72, 0.62), (-0.68, 0.85), (-wide * 0.6, 0.66)),
            polygon((wide * 0.8, 0.15), (0.72, 0.62), (0.68, 0.85), (wide * 0.6, 0.66)),
        ),
        (
            t.main,
            curve(
                (0, -1),
                (wide * 0.8, -0.55),
                (wide, 0),
                (wide * 0.75, 0.68),
                (-wide * 0.75, 0.68),
                (-wide, 0),
                (-wide * 0.8, -0.55),
            ),
        ),
        ("detail", t.dark, curve((0, -1), (wide * 0.76, -0.58), (0, -0.52), (-wide * 0.76, -0.58))),
        ("detail", GREY, ellipse(0, -0.2, 0.2, 0.2)),
        ("detail", GLASS, ellipse(0, -0.2, 0.135, 0.135)),
        ("detail", t.spot, rect(-wide * 0.93, 0.22, wide * 0.93, 0.34)),
    )


def umbrella(t: Tones, rng: np.random.Generator) -> list[Shape]:
    """Open: a scalloped dome in the colour on a hooked stick."""
    rim, wide = rng.uniform(-0.12, 0.05), rng.uniform(0.88, 1.0)
    dome = ellipse(0, rim, wide, 0.8, 0, 0.5, 1.0)
    edge = np.linspace(wide, -wide, 5)
    scallops = np.concatenate(
        [
            np.stack([np.linspace(a, b, 9), rim - 0.14 * np.sin(np.linspace(0, np.pi, 9))], 1)
            for a, b in itertools.pairwise(edge)
        ]
    )
    middle = np.concatenate(
        [
            curve((-0.5 * wide, rim), (-0.3 * wide, -0.55), (0, rim - 0.8), closed=False),
            curve((0, rim - 0.8), (0.3 * wide, -0.55), (0.5 * wide, rim), closed=False),
            polygon((0.25 * wide, rim - 0.14), (0, rim), (-0.25 * wide, rim - 0.14)),
        ]
    )
    hook = curve((0, -0.1), (0, 0.75), (-0.06, 0.93), (-0.18, 0.96), (-0.27, 0.85), closed=False)
    return _shapes(
        (WOOD, stroke(hook, 0.09), rect(-0.035, -1, 0.035, -0.7)),
        (t.main, np.concatenate([dome, scallops])),
        ("detail", t.light, middle),
    )


OBJECTS = {
    draw.__name__: draw for draw in (house, tree, car, boat, cat, fish, bird, flower, mushroom, cup, rocket, umbrella)
}
