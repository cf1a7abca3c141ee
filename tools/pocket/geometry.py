"""Shapes of the drawn world: unions of polygons in the unit square, x to the right, y down."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
Role = Literal["background", "shadow", "object", "detail"]


@dataclass(frozen=True)
class Shape:
    """One filled form: the union of `parts`, each an (N, 2) polygon; `colour` is RGB in 0..255.

    `background` shapes make the place, `shadow` lies under the object, `object` shapes carry its colour,
    `detail` shapes (windows, eyes, wheels) lie upon it.
    """

    parts: tuple[np.ndarray, ...]
    colour: Colour
    role: Role

    def moved(self, matrix: np.ndarray, offset: np.ndarray) -> "Shape":
        """Every point p becomes `matrix @ p + offset`."""
        return replace(self, parts=tuple(part @ matrix.T + offset for part in self.parts))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from a to b."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, start: float = 0.0, end: float = 1.0):
    """Points of an ellipse, or of its arc from `start` to `end` in whole turns, turned by `turn` radians."""
    angle = 2 * np.pi * np.linspace(start, end, 48, endpoint=end - start < 1)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([x + px * np.cos(turn) - py * np.sin(turn), y + px * np.sin(turn) + py * np.cos(turn)], 1)


def rect(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """An upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """A polygon from its corners."""
    return np.array(points, float)


def curve(*points: tuple[float, float], closed: bool = True, steps: int = 8) -> np.ndarray:
    """A smooth line through the points (Catmull-Rom)."""
    p = np.array(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    q = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return q.reshape(-1, 2) if closed else np.concatenate([q.reshape(-1, 2), p[-2:-1]])


def stroke(line: np.ndarray, width: float, tip: float | None = None) -> np.ndarray:
    """The polygon of a line drawn with a pen of `width`, narrowing to `tip` at its end."""
    line = np.asarray(line, float)
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    half = np.linspace(width, width if tip is None else tip, len(line))[:, None] / 2
    return np.concatenate([line + across * half, (line - across * half)[::-1]])
