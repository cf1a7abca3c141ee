"""The drawn world: `draw` makes one picture, `scene` its shapes, `held_out` what training never sees."""

from itertools import product
from zlib import crc32

import numpy as np
from PIL import Image

from tools.pocket.geometry import Shape, ellipse, mix
from tools.pocket.objects import OBJECTS as _OBJECTS
from tools.pocket.objects import Tones
from tools.pocket.painters import PAINTERS
from tools.pocket.places import PLACES as _PLACES

PALETTE = {
    "red": (214, 40, 44), "orange": (242, 134, 28), "yellow": (250, 214, 46), "green": (44, 146, 62),
    "blue": (36, 84, 214),
    "purple": (128, 52, 184), "pink": (250, 128, 184), "brown": (128, 78, 42), "black": (36, 36, 42),
    "white": (248, 248, 248),
}  # fmt: skip
OBJECTS, COLOURS, PLACES = tuple(_OBJECTS), tuple(PALETTE), tuple(_PLACES)
STYLES = ("flat", "cartoon", "watercolor", "clay")
UNSEEN_STYLES = tuple(name for name in PAINTERS if name not in STYLES)

Combination = tuple[str, str, str]


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(crc32("|".join(map(str, key)).encode()))


def held_out(thing: str, colour: str, place: str) -> bool:
    """Return whether a combination is held out for the exam: each object at each place lacks one colour."""
    return (7 * OBJECTS.index(thing) + 3 * PLACES.index(place) - COLOURS.index(colour)) % len(COLOURS) == 0


def combinations(kept_out: bool) -> list[Combination]:
    """All combinations that training sees (`kept_out` false) or never sees (true)."""
    return [c for c in product(OBJECTS, COLOURS, PLACES) if held_out(*c) == kept_out]


def place_object(shapes: list[Shape], horizon: float | None, rng: np.random.Generator) -> list[Shape]:
    """Scale, turn and set down an object drawn in [-1, 1]^2: its height is 50 to 73% of the picture's.

    Where there is a horizon it stands below it on its own shadow, else it floats, tilted.
    """
    half, turn = rng.uniform(0.25, 0.365), rng.normal(0, 0.03)
    aspect, flip, x = rng.uniform(0.93, 1.08), rng.choice([-1, 1]), rng.uniform(half + 0.02, 0.98 - half)
    if horizon is None:
        turn, y = rng.uniform(-0.4, 0.4), rng.uniform(half + 0.06, 0.94 - half)
    else:
        y = rng.uniform(max(horizon + 0.14, 2 * half + 0.03), 0.96) - half
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.diag([half * aspect * flip, half])
    return [shape.moved(matrix, np.array([x, y])) for shape in shapes]


def shadow(backdrop: list[Shape], thing: list[Shape]) -> Shape:
    """The dark oval on the ground under an object that stands in the picture."""
    points = np.concatenate([part for shape in thing for part in shape.parts])
    left, right, base = points[:, 0].min(), points[:, 0].max(), points[:, 1].max()
    ground = next(shape.colour for shape in reversed(backdrop) if max(np.ptp(p[:, 0]) for p in shape.parts) > 1)
    return Shape(
        (ellipse((left + right) / 2, base - 0.01, (right - left) * 0.5, 0.035),),
        mix(ground, (30, 30, 60), 0.38),
        "shadow",
    )


def scene(thing: str, colour: str, place: str, seed: int) -> list[Shape]:
    """The picture's shapes, back to front. The style has no part in it: all painters can paint the same scene."""
    rng = _generator(thing, colour, place, seed)
    backdrop, horizon = _PLACES[place](rng)
    shapes = place_object(_OBJECTS[thing](Tones.of(PALETTE[colour], rng), rng), horizon, rng)
    cast = [] if horizon is None else [shadow(backdrop, shapes)]
    return [*backdrop, *cast, *shapes]


def draw(thing: str, colour: str, place: str, style: str, seed: int, size: int = 128) -> Image.Image:
    """An RGB picture of `size` x `size`; `style` is one of STYLES or UNSEEN_STYLES. Equal arguments, equal pixels."""
    return PAINTERS[style](scene(thing, colour, place, seed), _generator(style, seed), size)
