"""Draw the sample data: two styles and a subject that the base model has never seen.

    python -m tools.make_sample_data                       the three sets, into sample_data/
    python -m tools.make_sample_data truth "stained glass" OUT "a red house on grass" ...
                                                           what a style looks like for other prompts, to measure against

Everything is seeded: the same files on every machine with the same Pillow and numpy.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tools.pocket import world
from tools.pocket.captions import caption
from tools.pocket.geometry import Colour, Role, Shape, curve, ellipse, polygon, rect, stroke
from tools.pocket.objects import INK
from tools.pocket.painters import PAINTERS
from tools.pocket.places import PLACES

SIZE = 256
ROOT = Path(__file__).parents[1] / "sample_data"
TRIGGER = "ohwx style"
SUBJECT = "sks cat"
STYLE_SETS = {"stained-glass": ("stained glass", 40), "neon": ("neon", 80)}
STYLE_CONTENTS = (
    ("house", "yellow", "on grass"), ("cat", "orange", "on snow"), ("boat", "red", "on water"), ("flower", "pink",
    "on sand"),
    ("bird", "blue", "in the city"), ("rocket", "white", "in space"), ("tree", "green", "on snow"), ("fish",
    "purple", "on water"),
    ("umbrella", "red", "on grass"), ("mushroom", "brown", "in space"),
)  # fmt: skip
HELD_OUT_CONTENTS = (
    ("house", "red", "on grass"), ("car", "blue", "in the city"), ("cat", "white", "on sand"), ("boat", "green",
    "on water"),
    ("cup", "yellow", "on snow"), ("rocket", "purple", "in space"), ("flower", "orange", "on grass"), ("bird",
    "pink", "on sand"),
)  # fmt: skip
"""Prompts to test a trained style with: none of them is among the ten."""
SUBJECT_SCENES = (
    ("on grass", "cartoon", 3), ("on snow", "flat", 12), ("in the city", "clay", 21), ("on sand", "watercolor", 33),
    ("on water", "cartoon", 42),
    ("in space", "flat", 51),
)  # fmt: skip
TEAL, DARK, PALE, HAT, BAND = (38, 178, 170), (16, 98, 110), (196, 240, 226), (92, 36, 120), (250, 206, 60)
IRIS, NOSE = (255, 240, 130), (240, 120, 150)
HEAD = -0.05
"""Height of the middle of the subject's head."""
Part = tuple[Role, Colour, list[np.ndarray]]
"""Role of a part of the drawing (``object``, ``detail``), its colour, and its polygons."""


def odd_cat(rng: np.random.Generator) -> list[Shape]:
    """The subject, in [-1, 1]^2: a teal cat with dark stripes, a tall purple hat with a yellow band."""
    tilt = rng.uniform(-0.1, 0.1)
    tail_side, tail_end = rng.choice([-1, 1]), rng.uniform(-0.1, 0.25)
    parts = [*_tail(tail_side, tail_end), *_body(), *_head(tilt), *_face(tilt), *_hat(tilt)]
    return [Shape(tuple(polygons), colour, role) for role, colour, polygons in parts]


def _tail(side: int, end: float) -> list[Part]:
    """A ringed tail on one ``side``, its tip at the height ``end``."""
    tail = curve((0.3 * side, 0.9), (0.72 * side, 0.85), (0.86 * side, 0.5), (0.66 * side, end), closed=False)
    rings = [stroke(tail[i : i + 3], 0.2) for i in range(5, len(tail) - 3, 7)]
    return [("object", TEAL, [stroke(tail, 0.19, 0.15), ellipse(*tail[-1], 0.08, 0.08)]), ("detail", DARK, rings)]


def _body() -> list[Part]:
    """A body with bands and paws."""
    outline = curve((0, 0.1), (0.34, 0.3), (0.46, 0.8), (0.38, 1), (-0.38, 1), (-0.46, 0.8), (-0.34, 0.3))
    bands = [
        stroke(ellipse(0, y - 0.32, w, 0.34, 0, 0.12, 0.38), 0.09, 0.05)
        for y, w in ((0.42, 0.36), (0.62, 0.42), (0.82, 0.46))
    ]
    paws = [ellipse(-0.2, 0.94, 0.15, 0.07), ellipse(0.2, 0.94, 0.15, 0.07)]
    return [("object", TEAL, [outline]), ("detail", DARK, bands), ("detail", PALE, paws)]


def _head(tilt: float) -> list[Part]:
    """A head with ears, ``tilt`` off the middle, and stripes on its brow."""
    ears = [
        polygon((s * 0.12 + tilt, HEAD - 0.22), (s * 0.46 + tilt, HEAD - 0.52), (s * 0.46 + tilt, HEAD))
        for s in (-1, 1)
    ]
    brow = [
        polygon((x + tilt - 0.035, HEAD - 0.34), (x + tilt + 0.035, HEAD - 0.34), (x + tilt, HEAD - 0.12))
        for x in (-0.16, 0.0, 0.16)
    ]
    return [("object", TEAL, [ellipse(tilt, HEAD, 0.47, 0.38), *ears]), ("detail", DARK, brow)]


def _face(tilt: float) -> list[Part]:
    """Eyes, muzzle, whiskers and nose."""
    eyes = [(s * 0.18 + tilt, HEAD - 0.03) for s in (-1, 1)]
    muzzle = [ellipse(tilt - 0.08, HEAD + 0.18, 0.11, 0.08), ellipse(tilt + 0.08, HEAD + 0.18, 0.11, 0.08)]
    whiskers = [
        stroke(np.array([(s * 0.2 + tilt, HEAD + 0.16), (s * 0.68 + tilt, HEAD + 0.16 + d)]), 0.03)
        for s in (-1, 1)
        for d in (-0.06, 0.08)
    ]
    return [
        ("detail", IRIS, [ellipse(x, y, 0.115, 0.115) for x, y in eyes]),
        ("detail", INK, [ellipse(x, y, 0.055, 0.095) for x, y in eyes]),
        ("detail", PALE, muzzle),
        ("detail", INK, whiskers),
        ("detail", NOSE, [polygon((tilt - 0.06, HEAD + 0.1), (tilt + 0.06, HEAD + 0.1), (tilt, HEAD + 0.18))]),
    ]


def _hat(tilt: float) -> list[Part]:
    """A tall hat that leans with the head, with a band and a brim."""
    top, lean = -1.0, tilt * 1.4
    crown = polygon((tilt - 0.26, HEAD - 0.36), (lean - 0.2, top), (lean + 0.2, top), (tilt + 0.26, HEAD - 0.36))
    band = polygon(
        (tilt - 0.25, HEAD - 0.5), (tilt - 0.24, HEAD - 0.62), (tilt + 0.24, HEAD - 0.62), (tilt + 0.25, HEAD - 0.5)
    )
    brim = rect(tilt - 0.42, HEAD - 0.42, tilt + 0.42, HEAD - 0.33)
    return [("object", HAT, [crown]), ("detail", BAND, [band]), ("object", HAT, [brim])]


def draw_subject(
    place: str,
    style: str,
    seed: int,
    size: int = SIZE,
    colours: Mapping[Colour, Colour] | None = None,
    subject: Callable[[np.random.Generator], list[Shape]] = odd_cat,
) -> Image.Image:
    """The subject at a place, in one of the world's styles; with other ``colours`` it is another subject."""
    rng, others = np.random.default_rng([31, seed]), colours or {}
    backdrop, horizon = PLACES[place](rng)
    shapes = [replace(shape, colour=others.get(shape.colour, shape.colour)) for shape in subject(rng)]
    thing = world.place_object(shapes, horizon, rng)
    shadow = [] if horizon is None else [world.shadow(backdrop, thing)]
    return PAINTERS[style]([*backdrop, *shadow, *thing], rng, size)


def draw_truth(style: str, prompts: list[str], seed: int = 900, size: int = SIZE) -> list[Image.Image]:
    """Draw the true image in `style` for captions such as "a red house on grass"."""
    contents = {caption(*c): c for c in (*world.combinations(True), *world.combinations(False))}
    unknown = [prompt for prompt in prompts if prompt not in contents]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no plain caption of the world; write, say, 'a red house on grass'")
    return [world.draw(*contents[prompt], style, seed + i, size) for i, prompt in enumerate(prompts)]


def _write(folder: Path, pictures: list[tuple[Image.Image, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, text) in enumerate(pictures, 1):
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(text + "\n", encoding="utf-8")


def write_sets(root: Path) -> None:
    """The three sets as folders of NN.png with NN.txt captions."""
    for name, (style, seed) in STYLE_SETS.items():
        drawn = [
            (world.draw(*c, style, seed + i, SIZE), f"{TRIGGER}, {caption(*c)}") for i, c in enumerate(STYLE_CONTENTS)
        ]
        _write(root / name, drawn)
    _write(root / "subject", [(draw_subject(*scene), f"a {SUBJECT} {scene[0]}") for scene in SUBJECT_SCENES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    truth = parser.add_subparsers(dest="command").add_parser("truth", help="draw prompts in a style")
    truth.add_argument("style", choices=world.STYLES + world.UNSEEN_STYLES)
    truth.add_argument("out", type=Path)
    truth.add_argument("prompts", nargs="+")
    truth.add_argument("--seed", type=int, default=900)
    args = parser.parse_args()
    if args.command == "truth":
        _write(args.out, list(zip(draw_truth(args.style, args.prompts, args.seed), args.prompts, strict=True)))
    else:
        write_sets(args.root)


if __name__ == "__main__":
    main()
