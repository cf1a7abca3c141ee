"""Analyse an adapter layer by layer: norms, singular values, effective ranks; as a table or a plot."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from sdlora.adapters.state import AdapterState
from sdlora.editing.low_rank import effective_rank, layer_factors, weights_for
from sdlora.events import OnProgress, unwatched
from sdlora.filesystem.writing import write_atomic

SHARE = 0.95
"""Share of the energy (squared Frobenius norm) that the ``needed`` rank keeps."""


MOST = 64
"""Singular values kept of a layer without a rank."""
WIDTH, TOP, BARS, SPECTRA, FOOT, LEFT = 1200, 56, 220, 260, 76, 64
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 36), (205, 205, 212)
DENOISER_COLOUR = (61, 107, 179)
TEXT_COLOURS = {"text_encoder": (203, 108, 44), "text_encoder_2": (128, 84, 161)}
"""Colours of the text encoders by component. They and the denoiser's blue differ in brightness too."""
DECADES = 4
"""Number of decades: singular values are plotted down to 10⁻⁴ of the largest."""


class LayerSpectrum(NamedTuple):
    """Spectrum of one layer's update."""

    path: str
    method: str
    rank: int | None
    alpha: float
    norm: float
    """Frobenius norm of ΔW."""
    values: tuple[float, ...]
    """Singular values, the largest first; as many as the rank, or 64 at most."""
    effective: float
    """Effective rank, 1 to the rank: exp of the entropy of the normalised singular values (Roy and Vetterli, 2007)."""
    needed: int
    """Rank that keeps 95 % of the energy."""


def spectrum(state: AdapterState, base: str = "", on_progress: OnProgress = unwatched) -> list[LayerSpectrum]:
    """Analyse every layer of ``state``, in order. DoRA and (IA)³ need the ``base``. Raises ConfigError, ModelError."""
    weights = weights_for(base, state)
    layers = []
    for number, (path, module) in enumerate(state.modules.items()):
        values = layer_factors(path, module, weights(path)).values
        energies = values.square().cumsum(0)
        needed = int((energies < SHARE * energies[-1]).sum()) + 1
        kept = tuple(float(value) for value in values[: module.rank or MOST][:MOST])
        effective = effective_rank(values)
        layers.append(
            LayerSpectrum(
                path, module.method, module.rank, module.alpha, float(energies[-1].sqrt()), kept, effective, needed
            )
        )
        on_progress(number + 1, len(state.modules))
    return layers


def spectrum_table(layers: list[LayerSpectrum]) -> Iterator[str]:
    """Yield the layers as lines of text, the largest norm first."""
    yield f"{'norm':>9} {'rank':>5} {'effective':>9} {'95 %':>5}  layer"
    for layer in sorted(layers, key=lambda one: -one.norm):
        rank = "-" if layer.rank is None else str(layer.rank)
        yield f"{layer.norm:9.4g} {rank:>5} {layer.effective:9.1f} {layer.needed:5}  {layer.path}"


def save_spectrum_plot(layers: list[LayerSpectrum], path: Path) -> Path:
    """Save ``plot_spectrum`` of the layers as a PNG file at ``path``."""
    write_atomic(path, lambda partial: plot_spectrum(layers).save(partial, "PNG"))
    return path


def plot_spectrum(layers: Sequence[LayerSpectrum]) -> Image.Image:
    """Plot a bar for the norm of each layer's ΔW, and its singular values below, darker the larger (logarithmic)."""
    image = Image.new("RGB", (WIDTH, TOP + BARS + SPECTRA + FOOT), PAPER)
    draw = ImageDraw.Draw(image)
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
        colour = TEXT_COLOURS.get(layer.path.partition(".")[0], DENOISER_COLOUR)
        draw.rectangle((left, TOP + BARS - BARS * layer.norm / largest, right, TOP + BARS), fill=colour)
        for row, value in enumerate(layer.values):
            top = TOP + BARS + 8 + row * (SPECTRA - 8) / rows
            draw.rectangle((left, top, right, top + (SPECTRA - 8) / rows), fill=_shade(colour, value / strongest))
    _label_blocks(draw, small, [layer.path for layer in layers], step)
    _legend(draw, small, layers)
    return image


def _label_blocks(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, paths: Sequence[str], step: float
) -> None:
    """Label the denoiser's blocks where they begin, unless there is no room."""
    taken = 0.0
    for number, name in enumerate(map(block_of, paths)):
        left = LEFT + number * step
        if name and (number == 0 or block_of(paths[number - 1]) != name):
            draw.line((left, TOP, left, TOP + BARS + SPECTRA), fill=FAINT)
            if left >= taken:
                draw.text((left + 2, TOP + BARS + SPECTRA + 2), name, INK, font)
                taken = left + draw.textlength(name, font) + 10


def block_of(path: str) -> str:
    """Return ``down 1`` for a layer in a component's ``down_blocks.1``; ``mid``; empty outside such blocks."""
    parts = path.split(".")
    kind = parts[1].removesuffix("_blocks").removesuffix("_block") if len(parts) > 2 else ""
    return {"mid": "mid"}.get(kind, f"{kind} {parts[2]}" if kind in ("down", "up") else "")


def block_name(path: str) -> str:
    """Return ``down 1`` for a layer of the denoiser's ``down_blocks.1``; else the name of its component."""
    return block_of(path) or path.partition(".")[0].replace("_", " ")


def _shade(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """Blend from paper to ``colour`` as ``share`` goes from 10^-DECADES to 1."""
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
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, layers: Sequence[LayerSpectrum]
) -> None:
    left, top = LEFT, TOP + BARS + SPECTRA + 26
    for component in dict.fromkeys(layer.path.partition(".")[0] for layer in layers):
        draw.rectangle((left, top, left + 14, top + 14), fill=TEXT_COLOURS.get(component, DENOISER_COLOUR))
        text = component.replace("_", " ")
        draw.text((left + 20, top), text, INK, font)
        left += 44 + int(draw.textlength(text, font))
    draw.text((LEFT, top + 24), "left to right: the layers in the model's order", INK, font)
