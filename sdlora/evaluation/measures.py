"""Measures of what an adapter generates, from features alone: unit vectors in, figures out.

Each ``Figure`` has the base's value beside the adapter's, the training images' own where there is one, and a share
that has the same meaning for every model that compares images. Written below with cos for the mean cosine.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from sdlora.evaluation.fidelity import clip_t, likeness, likeness_within
from sdlora.evaluation.figures import Figure

LEAST_GAP = 1e-3
"""Least distance of two cosines whose share can be told from rounding."""
FINE, COARSE = 32, 8
"""Sides in pixels of the luminance by which pictures are compared, and of what is taken off it: place and look."""


def look(images: torch.Tensor, base: torch.Tensor, training: torch.Tensor) -> Figure:
    """Return how far ``images`` (N, D) are on the way from the ``base``'s (N, D) to the ``training`` images (M, D).

    Each is compared with the direction t of the training images' mean, those themselves with the mean of the others:
    share = (cos(images, t) - cos(base, t)) / (cos(training, t of the others) - cos(base, t)); 0 is the base, 1 as near
    as training images are to one another. ``spill`` is the same of images that were asked for without the trigger.
    """
    own = likeness_within(training).mean().item() if len(training) > 1 else 1.0
    value, first = (likeness(each, training).mean().item() for each in (images, base))
    return Figure(value, first, own, _share(value - first, own - first))


class Described(NamedTuple):
    """Training images and the captions that describe them, CLIP's features (M, D) each."""

    images: torch.Tensor
    captions: torch.Tensor


def prompts_kept(
    images: torch.Tensor, base: torch.Tensor, texts: torch.Tensor, own: Sequence[int], training: Described | None = None
) -> Figure:
    """Return CLIP-T of ``images`` (N, D) to their prompts ``texts[own[i]]``, of ``texts`` (P, D) of all prompts.

    share = c(images) / c(base), where c is the cosine to an image's own prompt less the mean cosine to the others: what
    all prompts have in common with any image says nothing of whether they are followed. CLIP may read a look worse than
    the base's own: c of the ``training`` images to their captions counts instead of c(base) where it is less.
    """
    value, first = (clip_t(each, texts[list(own)]) for each in (images, base))
    kept, most = (_contrast(each, texts, own) for each in (images, base))
    if training is None:
        return Figure(value, first, None, _share(kept, most))
    described = _contrast(training.images, training.captions, range(len(training.captions)))
    return Figure(value, first, clip_t(*training), _share(kept, min(most, described)))


def drift(images: torch.Tensor, base: torch.Tensor, others: torch.Tensor) -> Figure:
    """Return the mean distance 1 - cos of ``images`` (N, D) to the ``base``'s (N, D) of the same prompts and noise.

    ``base`` of the figure is the mean distance of the base's images to its images of ``others`` (M, D), other prompts:
    at share 1 the adapter changes images as much as if something else had been asked for. The distance between seeds
    of one prompt is no measure of that: of a prompt that the base is sure of it is nearly 0.
    """
    value = 1 - (images * base).sum(1).mean().item()
    apart = 1 - (base @ others.T).mean().item()
    return Figure(value, apart, None, _share(value, apart))


def diversity(images: torch.Tensor, base: torch.Tensor, seeds: int) -> Figure | None:
    """Return the mean distance 1 - cos of images of one prompt, ``seeds`` a prompt; share = that of the base's.

    None for one image a prompt.
    """
    value, first = _spread(images, seeds), _spread(base, seeds)
    return None if value is None or first is None else Figure(value, first, None, _share(value, first))


def nearest(images: torch.Tensor, base: torch.Tensor, training: torch.Tensor) -> Figure:
    """Return the mean cosine of ``images`` (N, D) to the nearest of the ``training`` images (M, D).

    share = mean of (cos - own) / (1 - own), where own is the mean cosine of training images to their nearest
    neighbours: 0 as near as they are to one another, 1 copies. Below two training images there is no share.
    """
    value, first = (_nearest(each, training).mean().item() for each in (images, base))
    if len(training) < 2:
        return Figure(value, first)
    own = _neighbours(training).mean().item()
    return Figure(value, first, own, _share(value - own, 1 - own))


def most_frequent_nearest(images: torch.Tensor, training: torch.Tensor, names: Sequence[str]) -> str:
    """Return the name of the training image (M, D) that most of ``images`` (N, D) are nearest to."""
    return names[int(torch.bincount((images @ training.T).argmax(1), minlength=len(training)).argmax())]


class Details(NamedTuple):
    """Details of images, (N, 1024) unit vectors each: their cosines are correlations."""

    plain: torch.Tensor
    mirrored: torch.Tensor

    def correlations(self, others: "Details") -> torch.Tensor:
        """Return the correlation (N, M) of each image with each of ``others`` or its mirror image."""
        return torch.maximum(self.plain @ others.plain.T, self.plain @ others.mirrored.T)


def details(images: Sequence[Image.Image]) -> Details:
    """Return the luminance of images at 32 x 32 px, without what 8 x 8 px show of it, as unit vectors.

    What is coarser than that is alike wherever the same thing stands in the same place.
    """
    left = torch.from_numpy(np.stack([_shrunk(image, FINE) - _shrunk(image, COARSE) for image in images]))
    return Details(*(_centred(each.flatten(1)) for each in (left, left.flip(2))))


def copies(images: Details, base: Details, training: Details, own: Sequence[Sequence[int]]) -> tuple[Figure, int]:
    """Return how nearly images are copies, and the number of the training image that they copy.

    Each of ``images`` was asked for by the caption of the training images ``own[i]``, and so was each of the base's;
    those of one caption are from several seeds. Compared is each with the nearest of its own training images. The share
    is (value - base) / (1 - base) of the mean correlations of a caption, the largest of any: a memorised image comes
    from every noise; of any other, some noise gives one that is like it by chance.
    """
    found, first = ([_largest(row, numbers) for row, numbers in zip(each.correlations(training), own, strict=True)]
                    for each in (images, base))  # fmt: skip
    figures: list[tuple[Figure, int]] = []
    for numbers in dict.fromkeys(map(tuple, own)):
        rows = [row for row, its in enumerate(own) if tuple(its) == numbers]
        value, before = (fmean(each[row][0] for row in rows) for each in (found, first))
        picture = Counter(found[row][1] for row in rows).most_common(1)[0][0]
        figures.append((Figure(value, before, None, _share(value - before, 1 - before)), picture))
    return max(figures, key=lambda pair: pair[0].share or 0.0)


def _largest(row: torch.Tensor, numbers: Sequence[int]) -> tuple[float, int]:
    """Return the largest of the correlations ``row`` with these training images, and the number of that image."""
    best = max(numbers, key=lambda number: row[number].item())
    return row[best].item(), best


def _shrunk(image: Image.Image, side: int) -> np.ndarray:
    """Return the luminance, float32 (32, 32), of what is left of ``image`` at ``side`` x ``side`` px."""
    small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((FINE, FINE), Image.Resampling.BICUBIC), np.float32)


def _centred(levels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(levels - levels.mean(1, keepdim=True), dim=1)


def _nearest(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (images @ others.T).amax(1)


def _neighbours(images: torch.Tensor) -> torch.Tensor:
    """Return the cosine (N,) of each image to the nearest other one."""
    return (images @ images.T).fill_diagonal_(-1.0).amax(1)


def _contrast(images: torch.Tensor, texts: torch.Tensor, own: Sequence[int]) -> float:
    """Return the mean of each image's cosine to its own text less the mean one to the other texts."""
    cosines = images @ texts.T
    right = cosines.gather(1, torch.tensor([[index] for index in own]))
    others = (cosines.sum(1, keepdim=True) - right) / max(1, len(texts) - 1)
    return (right - others).mean().item()


def _spread(images: torch.Tensor, seeds: int) -> float | None:
    """Return the mean distance of images of one prompt; None for one image a prompt."""
    if seeds < 2 or not len(images):
        return None
    groups = images.view(-1, seeds, images.shape[1])
    among = (groups @ groups.transpose(1, 2)).sum((1, 2)) - seeds
    return 1 - among.mean().item() / (seeds * (seeds - 1))


def _share(part: float, whole: float) -> float | None:
    """Return ``part`` of ``whole``; None where that is too small to divide by."""
    return part / whole if whole > LEAST_GAP else None
