"""Three looks that nothing is trained on or tuned to: whatever judges looks, or learns them, is tried on these.

Their families (yarn, thread, cut paper) are none of those in `tools.pocket.looks`, and must stay so.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.pocket.geometry import Shape
from tools.pocket.painters import Painter

PAPERS = ((246, 240, 228), (252, 250, 244))
LINEN = (222, 208, 182)


def _flat(shapes: list[Shape], side: int) -> np.ndarray:
    """Paint shapes in their own colours, float32 (side, side, 3)."""
    image = Image.new("RGB", (side, side))
    canvas = ImageDraw.Draw(image)
    for shape in (each for each in shapes if each.role != "shadow"):
        for part in shape.parts:
            canvas.polygon([tuple(point) for point in part * side], fill=tuple(map(int, np.clip(shape.colour, 0, 255))))
    return np.asarray(image, np.float32)


def _mask(shape: Shape, side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    for part in shape.parts:
        ImageDraw.Draw(mask).polygon([tuple(point) for point in part * side], fill=255)
    return mask


def _finish(pixels: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BOX)


def knitted(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Wool: each stitch a V of one colour, with lit strands and dark gaps."""
    side = 4 * size
    wide, high = side // 36, side // 44
    rows, columns = np.mgrid[:side, :side]
    within = (columns % wide) / wide - 0.5
    height = rows / high + 1.1 * np.abs(within) * 2
    stitch_row, along = np.floor(height).astype(int), height % 1
    y = np.clip(((stitch_row + 0.3) * high).astype(int), 0, side - 1)
    x = np.clip(columns // wide * wide + wide // 2, 0, side - 1)
    wool = _flat(shapes, side)[y, x]
    shade = 0.62 + 0.5 * np.sin(np.pi * along) - 0.3 * (np.abs(within) < 0.07) - 0.25 * (np.abs(within) > 0.44)
    twist = 0.08 * np.sin(2 * np.pi * (along * 3 + np.abs(within) * 5))
    tone = rng.normal(1, 0.05, (stitch_row.max() + 1, side // wide + 1))[stitch_row, columns // wide]
    return _finish(wool * (shade + twist)[..., None] * tone[..., None] + 6, size)


def embroidered(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Satin stitch on linen: every shape filled with parallel threads of its own direction, raised at its rim."""
    side = 4 * size
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    weave = 9 * (np.sin(rows * 1.3) + np.sin(columns * 1.3))
    pixels = np.array(LINEN, np.float32) + weave[..., None] + rng.normal(0, 3, (side, side, 1))
    for shape in (each for each in shapes if each.role != "shadow"):
        mask = np.asarray(_mask(shape, side), np.float32)[..., None] / 255
        behind = shape.role == "background"
        turn, gap = rng.uniform(0, np.pi), side / (64 if behind else 90)
        across = rows * np.cos(turn) + columns * np.sin(turn)
        roundness = np.abs(np.sin(np.pi * across / gap))
        thread = 0.78 + 0.3 * roundness + rng.normal(0, 0.05, 4096)[(across / gap).astype(int) % 4096]
        cover = mask * 0.75 * (roundness > 0.25)[..., None] if behind else mask
        soft = (
            np.asarray(_mask(shape, side).filter(ImageFilter.GaussianBlur(side * 0.008)), np.float32)[..., None] / 255
        )
        body = np.array(shape.colour, np.float32) * thread[..., None] * (0.7 + 0.35 * soft)
        pixels = pixels + (body - pixels) * cover
    return _finish(pixels, size)


def cut_paper(shapes: list[Shape], rng: np.random.Generator, size: int) -> Image.Image:
    """Layers of coloured paper with white torn rims, each throwing a shadow on the one below."""
    side = 4 * size
    grain = rng.normal(0, 1, (side // 2, side // 2)).astype(np.float32)
    fibre = np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.BILINEAR))[..., None]
    pixels = np.broadcast_to(np.array(PAPERS[0], np.float32), (side, side, 3)).copy()
    for shape in (each for each in shapes if each.role != "shadow"):
        inner = _mask(shape, side)
        rim = {"object": 0.014, "detail": 0.006}.get(shape.role, 0.008)
        outer = inner.filter(ImageFilter.GaussianBlur(side * rim)).point(lambda level: 255 * (level > 40))
        drop = np.asarray(outer.filter(ImageFilter.GaussianBlur(side * 0.012)), np.float32)[..., None] / 255
        drop = np.roll(drop, (int(side * 0.012), int(side * 0.009)), (0, 1))
        pixels = pixels * (1 - 0.45 * drop)
        for mask, colour in ((outer, PAPERS[1]), (inner, shape.colour)):
            alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(1)), np.float32)[..., None] / 255
            paper = np.array(colour, np.float32) + 5 * fibre
            pixels = pixels + (paper - pixels) * alpha
    return _finish(pixels, size)


PAINTERS: dict[str, Painter] = {"knitted": knitted, "embroidered": embroidered, "cut paper": cut_paper}
