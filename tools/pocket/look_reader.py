"""A reader for each look: a small network that reads object, colour and place, trained on true drawings of that look.

CLIP does not know looks that it never saw; a reader knows nothing but its own. It sees drawings as they are, and
through the base's autoencoder, as all images of the base are.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tools.pocket import classifier, exam_looks, tower, vae, world
from tools.pocket.painters import PAINTERS, Painter
from tools.pocket.pool import EXAM_OFFSET, Pool, fill, label

CHUNKS = 4
"""Chunks of drawings that a reader is trained on."""
READ = ("object", "colour", "place")
LOOKS: dict[str, Painter] = {**PAINTERS, **exam_looks.PAINTERS}


def drawing(look: str, index: int) -> Image.Image:
    """Draw the world's picture of this number in a look."""
    return LOOKS[look](world.scene(*label(index)[:3], seed=index), np.random.default_rng([21, index]), 128)


def draw(look: str, work: Path, model: AutoencoderKL, workers: int) -> None:
    """Draw what the reader of a look is trained on, and its exam, of which half is never seen in training."""
    key = look.replace(" ", "-")
    fill(work / f"{key}-pictures", CHUNKS, workers, picture=partial(drawing, look))
    fill(work / f"{key}-exam", 1, workers, EXAM_OFFSET, partial(drawing, look))
    for name, offset in ((f"{key}-pictures", 0), (f"{key}-exam", EXAM_OFFSET)):
        pool = Pool(work / name, offset)
        tower.soften(model, pool, work / f"soft-{name}", len(pool.chunks), torch.device("cpu"))


class LookReader:
    """Reads what images in one look show; its own accuracy on true drawings, as they come from the base, is told."""

    def __init__(self, look: str, work: Path, model: AutoencoderKL, workers: int = 1):
        draw(look, work, model, workers)
        key = look.replace(" ", "-")
        pools = (f"{key}-pictures", f"soft-{key}-pictures")
        self.network, found = classifier.trained(work, f"reader-{key}", pools, f"soft-{key}-exam", READ)
        self.accuracy = {aspect: found[aspect] for aspect in READ}

    def shares(self, images: list[Image.Image], contents: list[world.Combination]) -> dict[str, float]:
        """Return the share of images of which each aspect is read as asked for."""
        pixels = vae.pixels(np.stack([np.asarray(image.convert("RGB").resize((128, 128))) for image in images]))
        seen = np.array([each[:3] for each in classifier.read(self.network, pixels)])
        return dict(zip(READ, (seen == np.array(contents)).mean(0).round(4).tolist(), strict=True))
