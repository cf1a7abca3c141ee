"""A picture of an adapter's layers: how strong each is, and how its strength is spread over its directions."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from sdlora.editing.layer_spectrum import LayerSpectrum

WIDTH, TOP, BARS, SPECTRA, FOOT, LEFT = 1200, 56, 220, 260, 76, 64
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 36), (205, 205, 212)
COLOURS = {"unet": (61, 107, 179), "text_encoder": (203, 108, 44), "text_encoder_2": (128, 84, 161)}
"""By component; a blue, an orange and a violet that differ in brightness too."""
DECADES = 4
"""Singular values are shown down to 10⁻⁴ of the largest of all."""


def plot_spectrum(layers: "Sequence[LayerSpectrum]") -> Image.Image:
    """Above: a bar a layer, its height the norm of ΔW. Below: its singular values, darker the larger (logarithmic)."""
    picture = Image.new("RGB", (WIDTH, TOP + BARS + SPECTRA + FOOT), PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(18), ImageFont.load_default(13)
    step = (WIDTH - LEFT - 16) / max(1, len(layers))
    largest = max((layer.norm for layer in layers), default=0.0) or 1.0
    strongest = max((layer.values[0] for layer in layers if layer.values), default=0.0) or 1.0
    rows = max((len(layer.values) for layer in layers), default=1)
    draw.text((LEFT, 14), f"{len(layers)} layers: norm of each update, and its singular values", INK, font)
    _axis(draw, small, largest, rows)
    for number, layer in enumerate(layers):
        left = LEFT + number * step
        right = max(left + 1, left + step - (1 if step > 3 else 0))
        colour = COLOURS.get(layer.path.partition(".")[0], INK)
        draw.rectangle((left, TOP + BARS - BARS * layer.norm / largest, right, TOP + BARS), fill=colour)
        for row, value in enumerate(layer.values):
            top = TOP + BARS + 8 + row * (SPECTRA - 8) / rows
            draw.rectangle((left, top, right, top + (SPECTRA - 8) / rows), fill=_shade(colour, value / strongest))
    _label_blocks(draw, small, [layer.path for layer in layers], step)
    _legend(draw, small, layers)
    return picture


def _label_blocks(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, paths: Sequence[str], step: float
) -> None:
    """The UNet's blocks by name, each where it begins, unless there is no room for it."""
    taken = 0.0
    for number, name in enumerate(map(block_of, paths)):
        left = LEFT + number * step
        if name and (number == 0 or block_of(paths[number - 1]) != name):
            draw.line((left, TOP, left, TOP + BARS + SPECTRA), fill=FAINT)
            if left >= taken:
                draw.text((left + 2, TOP + BARS + SPECTRA + 2), name, INK, font)
                taken = left + draw.textlength(name, font) + 10


def block_of(path: str) -> str:
    """``down 1`` for a layer in ``unet.down_blocks.1``; ``mid``; empty outside the UNet's blocks."""
    parts = path.split(".")
    kind = parts[1].removesuffix("_blocks").removesuffix("_block") if parts[0] == "unet" and len(parts) > 2 else ""
    return {"mid": "mid"}.get(kind, f"{kind} {parts[2]}" if kind in ("down", "up") else "")


def _shade(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """From paper to ``colour`` as ``share`` goes from 10^-DECADES to 1."""
    strength = max(0.0, 1 + math.log10(share) / DECADES) if share > 0 else 0.0
    red, green, blue = (round(white + (own - white) * strength) for own, white in zip(colour, PAPER, strict=True))
    return red, green, blue


def _axis(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, largest: float, rows: int
) -> None:
    for share in (0.0, 0.5, 1.0):
        height = TOP + BARS * (1 - share)
        draw.line((LEFT, height, WIDTH - 16, height), fill=FAINT)
        draw.text((8, height - 7), f"{largest * share:.3g}", INK, font)
    draw.text((8, TOP + BARS + 8), "1st", INK, font)
    draw.text((8, TOP + BARS + SPECTRA - 16), f"{rows}th", INK, font)


def _legend(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, layers: "Sequence[LayerSpectrum]"
) -> None:
    left, top = LEFT, TOP + BARS + SPECTRA + 26
    for component in dict.fromkeys(layer.path.partition(".")[0] for layer in layers):
        draw.rectangle((left, top, left + 14, top + 14), fill=COLOURS.get(component, INK))
        text = component.replace("_", " ")
        draw.text((left + 20, top), text, INK, font)
        left += 44 + int(draw.textlength(text, font))
    draw.text((LEFT, top + 24), "left to right: the layers in the model's order", INK, font)
