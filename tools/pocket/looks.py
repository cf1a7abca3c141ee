"""Looks made at random, for the image tower of CLIP alone: it shall know a red house in any look.

A look is a way to paint shapes, textures over that, and what becomes of the colours; a number decides all of it, and
many images share it. No caption names a look. Stained glass and neon, as `tools.pocket.painters` draw them, are none of
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.pocket import world
from tools.pocket.geometry import Shape, mix
from tools.pocket.painters import PAINTERS
from tools.pocket.pool import label

OFFSET = 1_000_000
"""Pictures from this number on are drawn for this; below, for the other networks."""
SHARED = 32
"""Consecutive images that share a look."""
BIG = 2
"""Textures are laid over a picture of this many times its size, so that lines may be finer than a pixel."""

Pixels = np.ndarray
"""float32 (H, W, 3), 0 to 255."""
Operation = Callable[[Pixels, np.random.Generator], Pixels]
"""Changes an image; the generator is the image's own."""
Maker = Callable[[np.random.Generator], Operation]
"""Chooses an operation's parameters; the generator is the look's."""


# Helpers


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _blurred(pixels: Pixels, radius: float) -> Pixels:
    return np.asarray(_image(pixels).filter(ImageFilter.GaussianBlur(float(radius))), np.float32)


def _tone(pixels: Pixels) -> np.ndarray:
    """Brightness (H, W, 1), 0 to 1."""
    return (pixels @ np.array([0.3, 0.59, 0.11], np.float32))[..., None] / 255


def _grid(pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (H, W), in pixels of the finished image."""
    rows, columns = np.mgrid[: len(pixels), : len(pixels[0])]
    return rows / BIG, columns / BIG


def _noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth noise (side, side, 1) of about unit deviation, with ``cells`` bumps a side."""
    small = Image.fromarray(rng.standard_normal((cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))[..., None]


def _edges(pixels: Pixels, width: float) -> np.ndarray:
    """Return the strength of changes of colour, (H, W, 1), 0 to 1."""
    smooth = _blurred(pixels, width)
    slope = sum(np.abs(np.gradient(smooth, axis=axis)).max(2) for axis in (0, 1))
    return np.clip(slope * width / 20, 0, 1)[..., None]


def _sampled(pixels: Pixels, rows: np.ndarray, columns: np.ndarray) -> Pixels:
    """The pixels at ``rows`` and ``columns`` of the large image, the nearest where those lie outside."""
    rows, columns = (np.clip(np.rint(each), 0, len(pixels) - 1).astype(int) for each in (rows, columns))
    return pixels[rows, columns]


def _colour(rng: np.random.Generator, dark: float = 0, light: float = 255) -> np.ndarray:
    return rng.uniform(dark, light, 3).astype(np.float32)


# How shapes are painted


@dataclass(frozen=True)
class Paint:
    """How shapes become a picture."""

    outline: float
    """Width, as a share of the picture's; 0 for none."""
    ink: np.ndarray | None
    """Colour of the outlines; None for the shape's own, darker or lighter by ``ink_share``."""
    ink_share: float
    filled: bool
    ground: np.ndarray
    """Colour of the paper."""
    wash: float
    """Share of the paper's colour in the background."""
    uneven: float
    """Deviation of the shapes' brightness."""

    @classmethod
    def chosen(cls, rng: np.random.Generator) -> "Paint":
        filled = rng.random() < 0.8
        outline = 0.0 if filled and rng.random() < 0.4 else rng.uniform(0.008, 0.035)
        bright = rng.random() < 0.6
        ground = _colour(rng, 190, 255) if bright else _colour(rng, 0, 70)
        ink = None if rng.random() < 0.4 else (_colour(rng, 0, 80) if bright else _colour(rng, 190, 255))
        return cls(outline, ink, rng.choice([-0.5, 0.0, 0.4]), filled, ground, rng.uniform(0, 0.8),
                   rng.choice([0.0, 0.15]))  # fmt: skip

    @property
    def keeps_colour(self) -> bool:
        return self.filled or (self.ink is None and self.outline > 0.015)

    def paint(self, shapes: Sequence[Shape], rng: np.random.Generator, side: int) -> Image.Image:
        image = Image.new("RGB", (side, side), _whole(self.ground))
        canvas = ImageDraw.Draw(image)
        for shape in (each for each in shapes if each.role != "shadow"):
            behind = shape.role == "background"
            tone = np.array(shape.colour, np.float32) * (1 + self.uneven * rng.standard_normal())
            tone = tone + (self.ground - tone) * (self.wash if behind else 0)
            points = [[tuple(point) for point in part * side] for part in shape.parts]
            width = round(self.outline * side * {"object": 1.0, "detail": 0.7}.get(shape.role, 0.5))
            if width:
                toward = (0, 0, 0) if self.ink_share < 0 else (255, 255, 255)
                own = np.array(mix(tuple(tone), toward, abs(self.ink_share)))
                ink = own if self.ink is None else self.ink + (tone - self.ink) * (0.4 if behind else 0)
                for part in points:
                    canvas.line([*part, *part[:2]], fill=_whole(ink), width=width, joint="curve")
            for part in points:
                if self.filled or width:
                    canvas.polygon(part, fill=_whole(tone if self.filled else self.ground))
        return image


def _whole(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(level) for level in np.clip(colour, 0, 255))


# Lines


def _hatching(rng: np.random.Generator) -> Operation:
    """Lines where it is dark, once or crossed."""
    slant, gap, ink = rng.uniform(0, np.pi), rng.uniform(2.5, 6), _colour(rng, 0, 90)
    crossed, light = rng.random() < 0.5, rng.uniform(0, 0.6)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        rows, columns = _grid(pixels)
        dark = 1 - _tone(pixels)[..., 0]
        drawn = np.zeros_like(dark)
        for turn, least in ((slant, 0.25), *(((slant + 1.4, 0.55),) if crossed else ())):
            along = rows * np.cos(turn) + columns * np.sin(turn) + 0.4 * _noise(own, len(rows), 9)[..., 0]
            drawn = np.maximum(drawn, (np.abs(along % gap - gap / 2) < 0.45 * gap * (dark - least)) * 1.0)
        paler = pixels + (255 - pixels) * light
        return paler + (ink - paler) * drawn[..., None]

    return apply


def _engraving(rng: np.random.Generator) -> Operation:
    """Parallel lines, as wide as it is dark, straight or bent by the brightness."""
    slant, gap, bend = rng.uniform(0, np.pi), rng.uniform(2.5, 5), rng.choice([0.0, 4.0])
    ink, paper = _colour(rng, 0, 70), _colour(rng, 200, 255)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        rows, columns = _grid(pixels)
        tone = _tone(_blurred(pixels, 1.5))[..., 0]
        along = rows * np.cos(slant) + columns * np.sin(slant) + bend * tone
        line = np.abs(along % gap / gap - 0.5) * 2 < 1.15 * (1 - tone) + 0.05
        return np.where(line[..., None], ink, paper)

    return apply


def _contours(rng: np.random.Generator) -> Operation:
    """Inked edges over what lies below, paler."""
    width, ink, pale = rng.uniform(0.8, 2.5), _colour(rng, 0, 90), rng.uniform(0, 0.9)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        paler = pixels + (245 - pixels) * pale
        return paler + (ink - paler) * _edges(pixels, width)

    return apply


def _scanlines(rng: np.random.Generator) -> Operation:
    gap, depth, upright = rng.uniform(2, 5), rng.uniform(0.2, 0.6), rng.random() < 0.3

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        place = _grid(pixels)[int(upright)]
        return pixels * (1 - depth * (np.sin(2 * np.pi * place / gap) > 0))[..., None]

    return apply


# Dots


def _halftone(rng: np.random.Generator) -> Operation:
    """A print's dots, as large as it is dark: of one ink, or of the colours' own."""
    gap, turn, coloured = rng.uniform(2.5, 5), rng.uniform(0, 1.5), rng.random() < 0.6
    paper, ink = _colour(rng, 215, 255), _colour(rng, 0, 80)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        rows, columns = _grid(pixels)
        u, v = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn) - rows * np.sin(turn)
        screen = (np.cos(2 * np.pi * u / gap) + np.cos(2 * np.pi * v / gap)) / 4 + 0.5
        dots = (screen < 1.05 - _tone(_blurred(pixels, 1))[..., 0])[..., None]
        return np.where(dots, pixels * 0.85 if coloured else ink, paper)

    return apply


def _stippling(rng: np.random.Generator) -> Operation:
    """Dots at random, the more the darker it is, over pale colours."""
    ink, pale, rough = _colour(rng, 0, 90), rng.uniform(0.2, 0.9), rng.choice([0.6, 1.2])

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        chance = _blurred(own.uniform(0, 255, pixels.shape), rough)[..., :1]
        spread = (chance - chance.mean()) / chance.std()
        dots = spread < 1.6 - 3.2 * _tone(pixels)
        return np.where(dots, ink, pixels + (250 - pixels) * pale)

    return apply


def _daubs(rng: np.random.Generator) -> Operation:
    """Dabs of colour beside one another on a ground."""
    count, radius, ground = int(rng.integers(1500, 4000)), rng.uniform(1.2, 3), _colour(rng)
    stretch, turn, uneven = rng.choice([1.0, 2.5]), rng.uniform(0, np.pi), rng.uniform(0, 22)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        side = len(pixels)
        image = _image(np.broadcast_to(ground, pixels.shape) * 0.5 + pixels * 0.5)
        canvas = ImageDraw.Draw(image)
        angle = np.linspace(0, 2 * np.pi, 9)
        oval = radius * BIG * np.stack([stretch * np.cos(angle), np.sin(angle)], 1)
        turned = oval @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        places = own.uniform(0, side, (count, 2))
        colours = _sampled(pixels, places[:, 1], places[:, 0]) + uneven * own.standard_normal((count, 3))
        for place, colour in zip(places, colours, strict=True):
            canvas.polygon([tuple(point) for point in turned + place], fill=_whole(colour))
        return np.asarray(image, np.float32)

    return apply


# Grain


def _grain(rng: np.random.Generator) -> Operation:
    strength, cells, coloured = rng.uniform(8, 45), rng.choice([40, 90, 160]), rng.random() < 0.3

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        channels = [_noise(own, len(pixels), int(cells)) for _ in range(3 if coloured else 1)]
        return pixels + strength * np.concatenate(channels * (1 if coloured else 3), 2)

    return apply


def _blotches(rng: np.random.Generator) -> Operation:
    strength, cells = rng.uniform(0.1, 0.35), int(rng.integers(4, 20))
    return lambda pixels, own: pixels * (1 + strength * np.clip(_noise(own, len(pixels), cells), -2, 2))


def _worn(rng: np.random.Generator) -> Operation:
    """Flecks and scratches where the paint has gone."""
    ground, share = _colour(rng), rng.uniform(0.9, 1.8)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        gone = _noise(own, len(pixels), 60) + _noise(own, len(pixels), 8) > 3.2 - share
        return np.where(gone, ground, pixels)

    return apply


# Relief


def _embossed(rng: np.random.Generator) -> Operation:
    """Lit from a side, as if brightness were height."""
    turn, depth, radius = rng.uniform(0, 2 * np.pi), rng.uniform(1, 4), rng.uniform(0.8, 3)
    plain = rng.choice([0.0, 0.0, 0.6])

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        height = _tone(_blurred(pixels, radius))[..., 0] * 255
        slope = np.gradient(height, axis=0) * np.cos(turn) + np.gradient(height, axis=1) * np.sin(turn)
        return pixels + (150 - pixels) * plain + (depth * radius * slope)[..., None]

    return apply


def _canvas(rng: np.random.Generator) -> Operation:
    """A rough ground that catches light."""
    cells, depth = int(rng.integers(30, 110)), rng.uniform(8, 26)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        bumps = _noise(own, len(pixels), cells)
        return pixels + depth * (bumps - np.roll(bumps, (2, 2), (0, 1)))

    return apply


# Mosaic


def _sites(rng: np.random.Generator) -> Operation:
    """Pieces around points: jittered squares, a honeycomb, or at random, with seams or without."""
    gap, jitter, comb = rng.uniform(4, 14), rng.choice([0.0, 0.3, 0.5]), rng.random() < 0.4
    seam, seam_width = _colour(rng), rng.choice([0.0, 0.6, 1.2])
    one_tone, uneven = rng.random() < 0.75, rng.choice([0.0, 0.12])

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        side = len(pixels)
        step = gap * BIG
        rows = np.arange(-step, side + step, step * (0.87 if comb else 1))
        columns = np.arange(-step, side + step, step)
        y, x = (each.ravel().astype(np.float32) for each in np.meshgrid(rows, columns, indexing="ij"))
        if comb:
            x = x + (np.arange(len(rows)) % 2 * step / 2).repeat(len(columns))
        y, x = y + jitter * step * own.uniform(-1, 1, len(y)), x + jitter * step * own.uniform(-1, 1, len(x))
        nearest, border = _nearest(y, x, side, step)
        colours = _sampled(_blurred(pixels, step / 5), y, x) * (1 + uneven * own.standard_normal((len(y), 1)))
        made = colours[nearest] if one_tone else pixels * (1 + uneven * own.standard_normal(len(y)))[nearest][..., None]
        return np.where((border < seam_width * BIG)[..., None], seam, made) if seam_width else made

    return apply


def _nearest(y: np.ndarray, x: np.ndarray, side: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the points for each pixel, and about how far it is from its piece's border, both (side, side)."""
    best = np.full((side, side), np.inf, np.float32)
    second, owner = best.copy(), np.zeros((side, side), np.int64)
    span = int(2.2 * reach) + 1
    for number, (row, column) in enumerate(zip(y, x, strict=True)):
        top, left = max(0, int(row) - span), max(0, int(column) - span)
        bottom, right = min(side, int(row) + span), min(side, int(column) + span)
        if bottom <= top or right <= left:
            continue
        part = slice(top, bottom), slice(left, right)
        far = np.hypot(np.arange(top, bottom)[:, None] - row, np.arange(left, right) - column)
        closer = far < best[part]
        second[part] = np.where(closer, best[part], np.minimum(second[part], far))
        best[part], owner[part] = np.where(closer, far, best[part]), np.where(closer, number, owner[part])
    return owner, second - best


def _bricks(rng: np.random.Generator) -> Operation:
    """Square blocks with a bevel or a round stud."""
    size, studded, depth = int(rng.integers(3, 9)) * BIG, rng.random() < 0.4, rng.uniform(0.1, 0.5)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        side = len(pixels)
        small = _image(pixels).resize((side // size + 1,) * 2, Image.Resampling.BOX, box=(0, 0, side, side))
        blocks = np.asarray(small, np.float32).repeat(size, 0).repeat(size, 1)[:side, :side]
        place = np.arange(side) % size / size - 0.5
        if studded:
            shade = -np.sin(8 * np.hypot(place[:, None], place)) * (place[:, None] + place)
        else:
            shade = (place < -0.3)[None] + (place < -0.3)[:, None] - 1.0 * (place > 0.3)[None] - (place > 0.3)[:, None]
        return blocks * (1 + depth * 0.5 * shade[..., None])

    return apply


# Glow


def _tubes(rng: np.random.Generator) -> Operation:
    """Bright outlines with a glow, on a dim picture."""
    dim, width, radius, bright = rng.uniform(0.05, 0.4), rng.uniform(1, 2.2), rng.uniform(2, 8), rng.uniform(1.1, 1.8)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        edges = _edges(pixels, width)
        lines = np.clip(_blurred(pixels, 2) * edges * bright + 40 * edges, 0, 255)
        return pixels * dim + lines + 1.2 * _blurred(lines, radius)

    return apply


def _bloom(rng: np.random.Generator) -> Operation:
    radius, share = rng.uniform(4, 14), rng.uniform(0.3, 0.8)
    return lambda pixels, own: 255 - (255 - pixels) * (1 - share * _blurred(pixels, radius) / 255)


def _lamp(rng: np.random.Generator) -> Operation:
    """Light from one place, dark elsewhere."""
    dark, reach = rng.uniform(0.1, 0.5), rng.uniform(35, 70)
    tint = 1 + 0.15 * rng.uniform(-1, 1, 3)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        rows, columns = _grid(pixels)
        far = np.hypot(rows - own.uniform(40, 90), columns - own.uniform(40, 90))
        return pixels * tint * (dark + (1.15 - dark) * np.exp(-((far / reach) ** 2)))[..., None]

    return apply


# Paper


def _old_paper(rng: np.random.Generator) -> Operation:
    """Inks that the paper's colour shows through, fibres, and stains."""
    paper, ink = np.array([252, 240, 214]) * rng.uniform(0.8, 1.0, 3), rng.uniform(0.4, 0.9)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        ground = paper + 6 * _noise(own, len(pixels), 90) - 14 * np.clip(_noise(own, len(pixels), 4) - 0.8, 0, 1)
        return ground * (1 - ink * (1 - pixels / 255))

    return apply


def _torn(rng: np.random.Generator) -> Operation:
    """A ragged margin."""
    paper, width, rough = _colour(rng, 170, 255), rng.uniform(4, 12), rng.uniform(1, 4)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        rows, columns = _grid(pixels)
        rim = np.minimum(np.minimum(rows, columns), np.minimum(128 - rows, 128 - columns))[..., None]
        return np.where(rim + rough * _noise(own, len(pixels), 22) < width, paper, pixels)

    return apply


# Smears


def _brush(rng: np.random.Generator) -> Operation:
    """Strokes along a field of directions."""
    length, cells, base = int(rng.integers(4, 12)), int(rng.integers(2, 9)), rng.uniform(0, 2 * np.pi)
    bristles, sweep = rng.uniform(0, 26), rng.uniform(0.4, 2.5)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        side = len(pixels)
        angle = (base + sweep * _noise(own, side, cells))[..., 0]
        rough = pixels + bristles * _noise(own, side, 100)
        rows, columns = (each.astype(np.float32) for each in np.mgrid[:side, :side])
        total = np.zeros_like(pixels)
        for _ in range(length):
            total += _sampled(rough, rows, columns)
            rows, columns = rows + 1.4 * np.sin(angle), columns + 1.4 * np.cos(angle)
        return total / length

    return apply


def _wobbled(rng: np.random.Generator) -> Operation:
    """Bent by waves or at random."""
    reach, cells, wave = rng.uniform(2, 6), int(rng.integers(6, 30)), rng.choice([0.0, 9.0, 17.0])

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        side = len(pixels)
        rows, columns = np.mgrid[:side, :side].astype(np.float32)
        if wave:
            return _sampled(pixels, rows, columns + reach * np.sin(rows / wave))
        return _sampled(
            pixels, rows + reach * 0.6 * _noise(own, side, cells)[..., 0],
            columns + reach * 0.6 * _noise(own, side, cells)[..., 0],
        )  # fmt: skip

    return apply


def _soft(rng: np.random.Generator) -> Operation:
    radius = rng.uniform(1.5, 5)
    return lambda pixels, own: _blurred(pixels, radius)


def _mist(rng: np.random.Generator) -> Operation:
    fog, share = _colour(rng, 120, 245), rng.uniform(0.2, 0.55)
    return lambda pixels, own: pixels + (fog - pixels) * share


def _smoothed(rng: np.random.Generator) -> Operation:
    """Rounded fields, as of thick paint."""
    size = int(rng.choice([5, 7, 9]))
    return lambda pixels, own: np.asarray(_image(pixels).filter(ImageFilter.MedianFilter(size)), np.float32)


FAMILIES: dict[str, tuple[Maker, ...]] = {
    "line": (_hatching, _engraving, _contours, _scanlines),
    "dot": (_halftone, _stippling, _daubs),
    "grain": (_grain, _blotches, _worn),
    "relief": (_embossed, _canvas),
    "mosaic": (_sites, _bricks),
    "glow": (_tubes, _bloom, _lamp),
    "paper": (_old_paper, _torn),
    "smear": (_brush, _wobbled, _soft, _mist, _smoothed),
}
"""Textures by what they have in common."""
NO_COLOUR = (_engraving,)
"""Textures that leave no colour to name."""


# Colours


def _vivid(rng: np.random.Generator) -> Operation:
    """Stronger or weaker, darker or lighter, and tinted; still what captions call them."""
    strength, gamma, tint = rng.uniform(0.55, 1.7), rng.uniform(0.7, 1.5), rng.uniform(0.9, 1.1, 3)

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        grey = pixels.mean(2, keepdims=True)
        return 255 * np.clip((grey + (pixels - grey) * strength) / 255, 0, 1) ** gamma * tint

    return apply


def _stepped(rng: np.random.Generator) -> Operation:
    steps = int(rng.integers(3, 7))
    return lambda pixels, own: np.rint(np.clip(pixels, 0, 255) / 255 * (steps - 1)) * 255 / (steps - 1)


def _inverted(rng: np.random.Generator) -> Operation:
    return lambda pixels, own: 255 - pixels


def _turned(rng: np.random.Generator) -> Operation:
    """All hues moved around the circle."""
    angle = rng.uniform(0.8, 5.5)
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = (np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * axis + np.sin(angle) * cross).astype(np.float32)
    return lambda pixels, own: pixels @ matrix.T


def _toned(rng: np.random.Generator) -> Operation:
    """Colours by brightness alone: grey, two of them, or several."""
    count = int(rng.integers(2, 5))
    colours = np.stack([_colour(rng) for _ in range(count)])
    order = colours.sum(1).argsort()
    colours = colours[order if rng.random() < 0.8 else order[::-1]]
    colours[0] *= 0.4
    colours[-1] = 255 - (255 - colours[-1]) * 0.4
    if rng.random() < 0.25:
        colours = np.linspace(0, 255, count)[:, None].repeat(3, 1)
    stepped = rng.random() < 0.4

    def apply(pixels: Pixels, own: np.random.Generator) -> Pixels:
        tone = np.clip(_tone(pixels)[..., 0], 0, 1) * (count - 1)
        tone = np.rint(tone) if stepped else tone
        return np.stack([np.interp(tone, np.arange(count), channel) for channel in colours.T], 2).astype(np.float32)

    return apply


TRUE_COLOURS: tuple[Maker, ...] = (_vivid, _vivid, _stepped)
OTHER_COLOURS: tuple[Maker, ...] = (_inverted, _turned, _toned, _toned)
"""Colours after which a caption's word for them is not true."""


@dataclass(frozen=True)
class Look:
    """All that a look's number decides."""

    paint: Paint | str
    """How shapes are painted, or one of the base's styles."""
    textures: tuple[Operation, ...]
    keeps_colour: bool
    """Whether colour words stay true."""


@lru_cache(maxsize=4096)
def look(number: int) -> Look:
    """Return the look of that number."""
    rng = np.random.default_rng([13, number])
    paint = Paint.chosen(rng) if rng.random() < 0.6 else str(rng.choice(world.STYLES))
    families = rng.permutation(sorted(FAMILIES))[: rng.choice([0, 1, 2], p=[0.12, 0.6, 0.28])]
    makers = [FAMILIES[family][rng.integers(len(FAMILIES[family]))] for family in families]
    keeps = (isinstance(paint, str) or paint.keeps_colour) and not {*makers} & {*NO_COLOUR}
    if rng.random() < 0.75:
        true = keeps and rng.random() < 0.65
        choices = TRUE_COLOURS if true else OTHER_COLOURS
        makers.insert(int(rng.integers(len(makers) + 1)), choices[rng.integers(len(choices))])
        keeps = true
    return Look(paint, tuple(maker(rng) for maker in makers), keeps)


def look_number(index: int) -> int:
    """Return the number of the look that the picture of this number has."""
    return index // SHARED


def keeps_colour(index: int) -> bool:
    """Return whether the picture of this number has the colours that its caption names."""
    return look(look_number(index)).keeps_colour


def picture(index: int, size: int = 128) -> Image.Image:
    """Return the RGB picture of this number, ``size`` pixels a side: a scene of the world in a look of its own."""
    chosen, own = look(look_number(index)), np.random.default_rng([14, index])
    shapes = world.scene(*label(index)[:3], seed=index)
    if isinstance(chosen.paint, str):
        image = PAINTERS[chosen.paint](shapes, own, BIG * size)
    else:
        image = chosen.paint.paint(shapes, own, BIG * size)
    pixels = np.asarray(image, np.float32)
    for operation in chosen.textures:
        pixels = operation(np.clip(pixels, 0, 255), own)
    return _image(pixels).resize((size, size), Image.Resampling.BOX)
