"""A second drawn subject, on which whatever judges adapters of subjects is tried (``benchmarks.choosing_runs``)."""

import numpy as np

from tools.pocket.geometry import Shape, ellipse, polygon, rect
from tools.pocket.objects import INK

WALL, CHECK, ROOF, HORN, FACE = (226, 62, 150), (250, 240, 248), (28, 44, 92), (250, 170, 40), (180, 240, 120)


def odd_house(rng: np.random.Generator) -> list[Shape]:
    """Return, in [-1, 1]^2, a tall magenta house with white checks, a navy roof with orange horns, and a green face."""
    lean, width = rng.uniform(-0.12, 0.12), rng.uniform(0.44, 0.52)
    walls = polygon((-width, 1), (lean - width, -0.2), (lean + width, -0.2), (width, 1))
    roof = polygon((lean - width - 0.14, -0.2), (1.4 * lean, -0.78), (lean + width + 0.14, -0.2))
    horns = [
        polygon((1.2 * lean + side * 0.12, -0.5), (1.4 * lean + side * 0.5, -1), (1.2 * lean + side * 0.36, -0.42))
        for side in (-1, 1)
    ]
    checks = [
        rect(x - 0.09 + lean * (1 - y) / 1.2, y - 0.09, x + 0.09 + lean * (1 - y) / 1.2, y + 0.09)
        for row, y in enumerate((0.58, 0.76, 0.94))
        for x in (np.arange(-2, 3) * 0.36 + 0.18 * (row % 2))
        if abs(x) < width - 0.08
    ]
    middle = 0.6 * lean
    eyes = [ellipse(middle + side * 0.12, 0.12, 0.05, 0.08) for side in (-1, 1)]
    mouth = [polygon((middle - 0.14, 0.26), (middle + 0.14, 0.26), (middle, 0.36))]
    return [
        Shape((walls,), WALL, "object"),
        Shape((*horns,), HORN, "object"),
        Shape((roof,), ROOF, "object"),
        Shape((*checks,), CHECK, "detail"),
        Shape((ellipse(middle, 0.18, 0.28, 0.26),), FACE, "detail"),
        Shape((*eyes, *mouth), INK, "detail"),
    ]
