"""Pictures of nothing in particular, so that the VAE can hold looks that the world does not have: any colours, cells
with lead lines, glowing strokes on black, hatching, gradients, blurred noise.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(c) for c in rng.integers(0, 256, 3))


def _ground(rng: np.random.Generator) -> Image.Image:
    """A plain, graded or cloudy ground; a third of them nearly black."""
    dim = 0.15 if rng.random() < 0.33 else 1.0
    coarse = rng.uniform(0, 255, (*rng.integers(1, 6, 2), 3)) * dim
    image = Image.fromarray(coarse.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return image if rng.random() < 0.6 else Image.new("RGB", (SIZE, SIZE), tuple(int(c * dim) for c in _colour(rng)))


def _forms(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 16)):
        centre, reach = rng.uniform(0, SIZE, 2), rng.uniform(3, 50)
        line = _colour(rng) if rng.random() < 0.5 else None
        width = int(rng.integers(1, 6))
        kind = rng.integers(4)
        if kind == 0:
            ring = centre + reach * rng.normal(0, 1, (rng.integers(3, 8), 2))
            canvas.polygon([tuple(p) for p in ring], fill=_colour(rng), outline=line, width=width)
        elif kind == 1:
            half = reach * rng.uniform(0.3, 1, 2)
            canvas.ellipse((*(centre - half), *(centre + half)), fill=_colour(rng), outline=line, width=width)
        elif kind == 2:
            canvas.line(
                [tuple(p) for p in centre + reach * rng.normal(0, 1, (5, 2))],
                fill=_colour(rng),
                width=width,
                joint="curve",
            )
        else:
            step, colour = int(rng.integers(4, 12)), _colour(rng)
            for k in range(int(rng.integers(3, 8))):
                canvas.line(
                    (centre[0] + k * step, centre[1], centre[0] + k * step + reach * 0.3, centre[1] + reach),
                    fill=colour,
                    width=2,
                )
    return image


def _cells(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    sites = rng.uniform(0, SIZE, (rng.integers(8, 60), 2))
    step = np.arange(SIZE)
    nearest = ((step[None, :, None] - sites[:, 0]) ** 2 + (step[:, None, None] - sites[:, 1]) ** 2).argmin(2)
    base = np.asarray(image, np.float32) if rng.random() < 0.5 else rng.uniform(0, 255, (len(sites), 3))[nearest]
    pixels = np.clip(base * rng.uniform(0.6, 1.3, len(sites))[nearest][..., None], 0, 255).astype(np.uint8)
    cut = (nearest != np.roll(nearest, 1, 0)) | (nearest != np.roll(nearest, 1, 1))
    lead = Image.fromarray(cut.astype(np.uint8) * 255)
    if rng.random() < 0.6:
        lead = lead.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(0.6))
    cells = Image.fromarray(pixels)
    cells.paste(tuple(int(c * 0.25) for c in _colour(rng)), mask=lead)
    return cells


def _glow(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    tubes = Image.new("RGB", (SIZE, SIZE))
    canvas = ImageDraw.Draw(tubes)
    for _ in range(rng.integers(2, 8)):
        path = np.cumsum(rng.normal(0, 18, (8, 2)), 0) + rng.uniform(0, SIZE, 2)
        canvas.line([tuple(p) for p in path], fill=_colour(rng), width=int(rng.integers(1, 6)), joint="curve")
    glow = np.asarray(tubes.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6))), np.float32) * rng.uniform(0.5, 1.5)
    return Image.fromarray(
        np.clip(np.asarray(image, np.float32) * 0.5 + glow + np.asarray(tubes), 0, 255).astype(np.uint8)
    )


def picture(index: int) -> Image.Image:
    """RGB, 128 x 128, a function of `index` alone."""
    rng = np.random.default_rng([11, index])
    image = _ground(rng)
    for layer, share in ((_forms, 0.75), (_cells, 0.3), (_glow, 0.25), (_forms, 0.2)):
        if rng.random() < share:
            image = layer(image, rng)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    return image
