"""How much of a look images have, by colours, edges and spectrum: a measure that no network has a part in.

For each of three kinds of features, a linear discriminant (Fisher, 1936, doi:10.1111/j.1469-1809.1936.tb02137.x, with
a shrunken covariance) is fitted between drawings in the base's own styles and true drawings of the look, both through
the base's autoencoder: it softens all that a base draws, and softened lines are no longer what tells the looks apart.
What images score is given as a share of the way from the base's images (0) to true drawings (1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tools.pocket import vae, world
from tools.pocket.painters import PAINTERS, Painter

SIZE = 128
DRAWINGS = 120
"""Drawings of either kind that a discriminant is fitted to."""
SHRINKAGE = 0.3
"""Share of the covariance's mean variance in its diagonal: there are more features than a hundred drawings settle."""
LIGHT = np.array([0.299, 0.587, 0.114])
LEVEL = 1 / 255
"""Least step of lightness that counts: one of an image's levels."""
OWN = [PAINTERS[style] for style in world.STYLES]
"""Painters of the base's own styles, which it mixes where a prompt names none."""
Features = Callable[[np.ndarray], np.ndarray]
"""Function from an image, float (H, W, 3) from 0 to 1, to a vector."""
Through = Callable[[Sequence[Image.Image]], list[Image.Image]]


def colours(image: np.ndarray) -> np.ndarray:
    """Return histograms of lightness, of saturation and of the hues that saturated pixels have, as square roots."""
    light, most, least = image @ LIGHT, image.max(2), image.min(2)
    chroma = most - least
    red, green, blue = np.moveaxis(image, 2, 0)
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) % (2 * np.pi)
    parts = (
        np.histogram(light, 10, (0, 1))[0],
        np.histogram(chroma, 8, (0, 1))[0],
        np.histogram(hue, 12, (0, 2 * np.pi), weights=chroma)[0],
    )
    return np.sqrt(np.concatenate(parts) / light.size)


def edges(image: np.ndarray) -> np.ndarray:
    """Return histograms of the steps between neighbouring pixels at three sizes, as square roots.

    Steps below ``LEVEL`` are counted as such: nobody sees them, and they tell a painter's even areas from those of any
    decoder, however near its latents are (docs/decisions/guidance-and-looks.md).
    """
    light, parts = image @ LIGHT, []
    for _ in range(3):
        steps = np.concatenate([np.abs(np.diff(light, axis=axis)).ravel() for axis in (0, 1)])
        sizes = np.log10(np.maximum(steps, LEVEL))
        parts.append(np.histogram(sizes, 8, (np.log10(LEVEL), 0))[0] / steps.size)
        light = (light[::2, ::2] + light[1::2, ::2] + light[::2, 1::2] + light[1::2, 1::2]) / 4
    return np.sqrt(np.concatenate(parts))


def spectrum(image: np.ndarray) -> np.ndarray:
    """Return the logarithm of the lightness's power in rings of frequency, and of sectors in the finer half."""
    light = image @ LIGHT
    window = np.hanning(len(light))
    power = np.abs(np.fft.fftshift(np.fft.fft2((light - light.mean()) * np.outer(window, window)))) ** 2
    y, x = np.indices(power.shape) - len(power) // 2
    radius, turn = np.hypot(x, y), np.arctan2(y, x) % np.pi
    limits = np.geomspace(1.5, len(power) / 2, 14)
    rings = [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(limits)]
    fine = (radius >= len(power) / 8) & (radius < len(power) / 2)
    sectors = [power[fine & (np.floor(turn / np.pi * 6) == k)].mean() for k in range(6)]
    return np.log10(np.array(rings + sectors) + 1e-4)


KINDS: dict[str, Features] = {"colours": colours, "edges": edges, "spectrum": spectrum}


@dataclass(frozen=True)
class Discriminant:
    """A direction in one kind of features, from flat drawings to those of the look."""

    features: Features
    direction: np.ndarray

    def scores(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return the score of each image, (N,)."""
        return _vectors(self.features, images) @ self.direction


def _vectors(features: Features, images: Sequence[Image.Image]) -> np.ndarray:
    sized = (image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX) for image in images)
    return np.stack([features(np.asarray(image, np.float64) / 255) for image in sized])


def fit(features: Features, plain: Sequence[Image.Image], look: Sequence[Image.Image]) -> Discriminant:
    """Fit the discriminant between images of two kinds."""
    first, second = _vectors(features, plain), _vectors(features, look)
    covariance = (np.cov(first.T) + np.cov(second.T)) / 2
    shrunken = covariance + SHRINKAGE * np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return Discriminant(features, np.linalg.solve(shrunken, second.mean(0) - first.mean(0)))


def drawings(painters: Sequence[Painter], count: int, seed: int, size: int = SIZE) -> list[Image.Image]:
    """Draw true images of the world, by each painter in turn; equal seeds have equal contents."""
    choices, rng = world.combinations(kept_out=False), np.random.default_rng(seed)
    contents = [choices[i] for i in rng.integers(len(choices), size=count)]
    return [
        painters[i % len(painters)](world.scene(*each, seed=seed + i), np.random.default_rng(seed + i), size)
        for i, each in enumerate(contents)
    ]


class LookMeasure:
    """The measure of one look, which ``painter`` paints; ``through`` passes images through the autoencoder."""

    def __init__(self, painter: Painter, through: Through, seed: int = 70_000):
        plain, look = (through(drawings(each, DRAWINGS, seed)) for each in (OWN, [painter]))
        self.discriminants = {name: fit(features, plain, look) for name, features in KINDS.items()}

    def shares(
        self, images: Sequence[Image.Image], base: Sequence[Image.Image], true: Sequence[Image.Image]
    ) -> dict[str, float]:
        """Return how far ``images`` are on the way from ``base`` to ``true`` by each kind, and ``look``, the least.

        All three show the same contents, ``true`` ones through the autoencoder. What lies beyond the true drawings
        counts as what lies as far before them: another look can have more of a thing than this one.
        """
        found = {}
        for name, discriminant in self.discriminants.items():
            asked, first, last = (float(discriminant.scores(each).mean()) for each in (images, base, true))
            share = (asked - first) / (last - first)
            found[name] = min(share, 2 - share)
        return {**found, "look": min(found.values())}


def autoencoded(model: AutoencoderKL, batch: int = 40) -> Through:
    """Return the function that passes 128 px images through ``model``."""

    @torch.no_grad()
    def through(images: Sequence[Image.Image]) -> list[Image.Image]:
        made = []
        for first in range(0, len(images), batch):
            pixels = vae.pixels(np.stack([np.asarray(image) for image in images[first : first + batch]]))
            pixels = model.decode(model.encode(pixels).latent_dist.mode()).sample
            levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
            made += [Image.fromarray(each) for each in levels.numpy()]
        return made

    return through
