"""Painters turn a scene's shapes into a picture, each in its own style; they draw at twice the size and reduce.

A painter takes (shapes, generator, size) and returns an RGB image of size x size. The first four styles are the
base model's; it never sees the last two, which serve as styles to be learnt.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.pocket.geometry import Colour, Shape, mix

Painter = Callable[[list[Shape], np.random.Generator, int], Image.Image]


def _rgb(colour: Colour) -> tuple[int, int, int]:
    return tuple(int(np.clip(c, 0, 255)) for c in colour)


def _fill(canvas: ImageDraw.ImageDraw, shape: Shape, colour: object, scale: float, shift: float = 0.0) -> None:
    for part in shape.parts:
        canvas.polygon([tuple(p) for p in (part + shift) * scale], fill=colour)


def _outline(canvas: ImageDraw.ImageDraw, shape: Shape, colour: object, scale: float, width: int) -> None:
    for part in shape.parts:
        ring = [tuple(p) for p in np.concatenate([part, part[:2]]) * scale]
        canvas.line(ring, fill=colour, width=width, joint="curve")


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) of about unit deviation, with `cells` bumps a side."""
    small = Image.fromarray(rng.standard_normal((cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _finish(pixels: np.ndarray | Image.Image, size: int) -> Image.Image:
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return pixels.resize((size, size), Image.Resampling.BOX)


def flat(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Plain fields of colour without lines; the object throws a sharp shadow to the lower right."""
    big = 2 * size
    image = Image.new("RGB", (big, big))
    canvas = ImageDraw.Draw(image)
    for shape in (s for s in shapes if s.role == "background"):
        _fill(canvas, shape, _rgb(shape.colour), big)
    thing = [s for s in shapes if s.role in ("object", "detail")]
    cast = Image.new("L", (big, big))
    for shape in thing:
        _fill(ImageDraw.Draw(cast), shape, 105, big, shift=0.025)
    image.paste((24, 20, 60), mask=cast)
    for shape in thing:
        _fill(canvas, shape, _rgb(shape.colour), big)
    return _finish(image, size)


def cartoon(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Bright fields with thick dark outlines, thinner and softer in the background."""
    big = 2 * size
    image = Image.new("RGB", (big, big))
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        front = shape.role in ("object", "detail")
        if shape.role != "shadow":
            line = (22, 18, 26) if front else mix(shape.colour, (40, 36, 60), 0.55)
            _outline(
                canvas, shape, _rgb(line), big, round(big * {"object": 0.034, "detail": 0.02}.get(shape.role, 0.016))
            )
        grey = sum(shape.colour) / 3
        _fill(canvas, shape, _rgb(mix((grey,) * 3, shape.colour, 1.3)), big)
    return _finish(image, size)


def watercolor(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Washes of pigment on cream paper: wavering edges that dry darker, uneven tone, an unpainted rim."""
    big = 2 * size
    image = Image.new("RGB", (big, big))
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        _fill(canvas, shape, _rgb(shape.colour), big)
    rows, columns = np.mgrid[:big, :big]
    shake = big * 0.008
    rows = np.clip(rows + shake * _noise(rng, big, 14), 0, big - 1).astype(int)
    columns = np.clip(columns + shake * _noise(rng, big, 14), 0, big - 1).astype(int)
    wash = np.asarray(image)[rows, columns]
    near = np.asarray(Image.fromarray(wash).filter(ImageFilter.GaussianBlur(big * 0.012)), np.float32)
    wash = np.asarray(Image.fromarray(wash).filter(ImageFilter.GaussianBlur(big * 0.003)), np.float32)
    rim = np.abs(wash - near).sum(2, keepdims=True) * 0.28
    away = np.minimum(np.minimum(rows, columns), big - 1 - np.maximum(rows, columns)) / big
    edge = np.clip((away + 0.018 * _noise(rng, big, 8) - 0.035) * 40, 0, 1)
    pigment = np.clip(0.88 + 0.09 * _noise(rng, big, 5), 0.55, 1) * edge
    paper = np.array([251, 246, 234], np.float32)
    return _finish(paper + (wash - rim - paper) * pigment[..., None], size)


def _relief(mask: Image.Image, radius: float) -> np.ndarray:
    """The slope towards the upper-left light of a pillow raised on the mask, (H, W), about -1 to 1."""
    height = np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
    slope = np.zeros_like(height)
    slope[1:-1, 1:-1] = height[2:, 2:] - height[:-2, :-2]
    return slope * radius


def clay(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Plasticine: every form swells softly, lit from the upper left, and throws a blurred shadow."""
    big = 2 * size
    pixels = np.zeros((big, big, 3), np.float32)
    for shape in (s for s in shapes if s.role != "shadow"):
        points = np.concatenate(shape.parts) * big
        pad = big * 0.09
        (x0, y0), (x1, y1) = (
            np.clip(points.min(0) - pad, 0, big).astype(int),
            np.clip(points.max(0) + pad, 0, big).astype(int),
        )
        if x1 - x0 < 4 or y1 - y0 < 4:
            continue
        mask = Image.new("L", (int(x1 - x0), int(y1 - y0)))
        canvas = ImageDraw.Draw(mask)
        for part in shape.parts:
            canvas.polygon([tuple(p) for p in part * big - (x0, y0)], fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(big * 0.005))
        radius = big * {"object": 0.028, "detail": 0.012}.get(shape.role, 0.016)
        drop = np.asarray(mask.filter(ImageFilter.GaussianBlur(big * 0.014)), np.float32) / 255
        reach = round(big * (0.02 if shape.role == "object" else 0.01))
        drop = np.pad(drop, ((reach, 0), (reach, 0)))[: drop.shape[0], : drop.shape[1], None]
        slope = _relief(mask, radius)[..., None]
        body = np.array(mix(shape.colour, (150, 140, 140), 0.08)) + 95 * slope + 120 * np.clip(slope - 0.35, 0, 1)
        alpha = np.asarray(mask, np.float32)[..., None] / 255
        under = pixels[y0:y1, x0:x1] * (1 - 0.4 * drop)
        pixels[y0:y1, x0:x1] = under + (np.clip(body, 0, 255) - under) * alpha
    return _finish(pixels + 4 * _noise(rng, big, 20)[..., None], size)


def _cells(shapes: list[Shape], rng: np.random.Generator, big: int) -> tuple[np.ndarray, np.ndarray]:
    """The glass pieces' numbers (H, W) and each piece's base colour by pixel: shapes cut by a jittered grid."""
    label, image = Image.new("I", (big, big)), Image.new("RGB", (big, big))
    for number, shape in enumerate((s for s in shapes if s.role != "shadow"), 1):
        extent = max(np.ptp(p, axis=0).max() for p in shape.parts)
        if extent > (0.2 if shape.role == "background" else 0.05):
            _fill(ImageDraw.Draw(label), shape, number, big)
            _fill(ImageDraw.Draw(image), shape, _rgb(shape.colour), big)
    n = 6
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2)
    sites = (grid + rng.uniform(0.1, 0.9, (n * n, 2))) * big / n
    step = np.arange(big)
    distance = (step[None, :, None] - sites[:, 0]) ** 2 + (step[:, None, None] - sites[:, 1]) ** 2
    piece = np.asarray(label, np.int64) * n * n + distance.argmin(2)
    return piece, np.asarray(image, np.float32)


def stained_glass(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """A church window: glowing pieces of glass, each of its own brightness, held by dark lead."""
    big = 2 * size
    piece, colour = _cells(shapes, rng, big)
    grey = colour.mean(2, keepdims=True)
    tone = rng.uniform(0.72, 1.25, 4096)[piece % 4096][..., None]
    glass = np.clip(grey + (colour - grey) * 1.7, 12, 245) * tone
    glass = glass + (255 - glass) * (0.12 + 0.06 * np.clip(_noise(rng, big, 6), -1.5, 2))[..., None]
    cut = np.zeros((big, big), bool)
    cut[:, 1:] |= piece[:, 1:] != piece[:, :-1]
    cut[1:] |= piece[1:] != piece[:-1]
    lead = Image.fromarray(cut.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * round(big * 0.005) + 1))
    lead = np.asarray(lead.filter(ImageFilter.GaussianBlur(big * 0.003)), np.float32)[..., None] / 255
    return _finish(glass + (np.array([20, 18, 24]) - glass) * np.clip(lead * 1.3, 0, 1), size)


def neon(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Glowing tubes along every outline before a night-blue wall."""
    big = 2 * size
    tubes = Image.new("RGB", (big, big))
    canvas = ImageDraw.Draw(tubes)
    for shape in (s for s in shapes if s.role != "shadow"):
        front = shape.role != "background"
        grey = sum(shape.colour) / 3
        bright = mix((grey,) * 3, shape.colour, 2.0 if front else 1.6)
        peak = max(max(bright), 1.0)
        bright = tuple(max(c, 0.0) * (255 if front else 120) / peak for c in bright)
        if front:
            _outline(canvas, shape, _rgb(bright), big, round(big * (0.03 if shape.role == "object" else 0.02)))
            _fill(canvas, shape, _rgb(mix((14, 10, 34), bright, 0.16)), big)
        else:
            _outline(canvas, shape, _rgb(bright), big, round(big * 0.012))
            _fill(canvas, shape, _rgb(mix((14, 10, 34), shape.colour, 0.07)), big)
    glow = sum(
        np.asarray(tubes.filter(ImageFilter.GaussianBlur(big * r)), np.float32) * k
        for r, k in ((0.01, 0.6), (0.035, 0.7))
    )
    core = np.asarray(tubes, np.float32)
    return _finish(core + glow + 0.25 * np.clip(core - 150, 0, None).mean(2, keepdims=True), size)


PAINTERS: dict[str, Painter] = {
    "flat": flat, "cartoon": cartoon, "watercolor": watercolor, "clay": clay, "stained glass": stained_glass,
    "neon": neon,
}  # fmt: skip
