"""A reader of one subject: a small network that tells it from its class and from other things, and reads the place.

It is trained on unlimited true drawings and knows nothing of CLIP, which judges adapters: what it reads is the truth
that a judgement is compared with. It sees drawings as they are, and through the base's autoencoder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from tools.make_sample_data import draw_subject
from tools.pocket import vae, world
from tools.pocket.classifier import Classifier, blurred
from tools.pocket.fit import Plan, fit, load_average
from tools.pocket.geometry import Shape
from tools.pocket.look_measure import autoencoded

DRAWINGS, EXAM = 3000, 300
SIZE = 128
PLAN = Plan(steps=700, rate=2e-3, batch=48, warmup=50, averaging=0.99, decay=0.05)
KINDS = ("subject", "class", "other")
FIRST_EXAM_SEED = 1_000_000
Subject = Callable[[np.random.Generator], list[Shape]]


class Reading(NamedTuple):
    """Probabilities (N, 3) that images show the subject, its class or another thing, and (N, 6) of each place."""

    kinds: torch.Tensor
    places: torch.Tensor


class SubjectReader:
    """Reads images of the base; ``accuracy`` is its own on drawings that it never saw, as they come from the base."""

    def __init__(self, subject: Subject, class_name: str, work: Path, model: AutoencoderKL):
        self._subject, self._class, self._through = subject, class_name, autoencoded(model)
        self.network = Classifier()
        self.network.head = nn.Linear(self.network.head.in_features, len(KINDS) + len(world.PLACES))
        work.mkdir(parents=True, exist_ok=True)
        path = work / f"subject-{class_name}.pt"
        if not path.exists() or load_average(path, self.network) < PLAN.steps:
            self._train(path)
        self.network.eval()
        self.accuracy = self._exam()

    def read(self, images: Sequence[Image.Image]) -> Reading:
        """Return what is seen in images of any size."""
        small = [image.convert("RGB").resize((SIZE, SIZE)) for image in images]
        with torch.no_grad():
            logits = torch.cat([self.network(part) for part in _pixels(small).split(100)])
        kinds, places = logits.split([len(KINDS), len(world.PLACES)], 1)
        return Reading(kinds.softmax(1), places.softmax(1))

    def _drawn(self, seed: int) -> tuple[Image.Image, int, int]:
        """Draw the subject, a thing of its class or another thing, with the numbers of kind and place."""
        rng = np.random.default_rng([41, seed])
        place, style = rng.integers(len(world.PLACES)), world.STYLES[rng.integers(len(world.STYLES))]
        name, kind = world.PLACES[place], seed % len(KINDS)
        if KINDS[kind] == "subject":
            return draw_subject(name, style, seed, SIZE, subject=self._subject), kind, place
        others = [thing for thing in world.OBJECTS if thing != self._class]
        thing = self._class if KINDS[kind] == "class" else others[rng.integers(len(others))]
        colour = world.COLOURS[rng.integers(len(world.COLOURS))]
        return world.draw(thing, colour, name, style, seed, SIZE), kind, place

    def _train(self, path: Path) -> None:
        torch.manual_seed(0)
        images, *labels = zip(*map(self._drawn, range(DRAWINGS)), strict=True)
        pixels = torch.cat([_pixels(images), _pixels(self._through(images))])
        targets = torch.tensor(labels).T.repeat(2, 1)

        def loss_of(step: int) -> torch.Tensor:
            rng = np.random.default_rng([42, step])
            chosen = torch.from_numpy(rng.integers(len(pixels), size=PLAN.batch))
            logits = self.network(blurred(pixels[chosen], rng)).split([len(KINDS), len(world.PLACES)], 1)
            pairs = zip(logits, targets[chosen].T, strict=True)
            return sum((nn.functional.cross_entropy(*pair) for pair in pairs), torch.tensor(0.0))

        fit(path.stem, self.network, loss_of, PLAN, path.parent)

    def _exam(self) -> dict[str, float]:
        seeds = range(FIRST_EXAM_SEED, FIRST_EXAM_SEED + EXAM)
        images, kinds, places = zip(*map(self._drawn, seeds), strict=True)
        found = self.read(self._through(images))
        pairs = {"kind": (found.kinds, kinds), "place": (found.places, places)}
        right = {name: seen.argmax(1) == torch.tensor(true) for name, (seen, true) in pairs.items()}
        return {name: round(each.float().mean().item(), 4) for name, each in right.items()}


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    return vae.pixels(np.stack([np.asarray(image) for image in images]))
