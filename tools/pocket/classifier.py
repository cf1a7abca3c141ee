"""An independent eye for the exam: a small convnet that reads object, colour, place and style from a picture.

It is trained on the world's own drawings and has seen nothing of what CLIP, VAE or UNet make.
"""

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tools.pocket import vae, world
from tools.pocket.fit import Plan, fit, load_average
from tools.pocket.pool import EXAM_OFFSET, Pool

ASPECTS = {"object": world.OBJECTS, "colour": world.COLOURS, "place": world.PLACES, "style": world.STYLES}
PLAN = Plan(steps=1400, rate=2e-3, batch=64, warmup=100, averaging=0.99, decay=0.05)


class Classifier(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] to logits (B, 12 + 10 + 6 + 4)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128, 160)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += (
                [nn.Conv2d(after, after, 3, padding=1, groups=8), nn.GroupNorm(8, after), nn.SiLU()]
                if before > 3
                else []
            )
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], sum(map(len, ASPECTS.values())))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.features(pixels)
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))


def split(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits of each aspect by name."""
    return dict(zip(ASPECTS, logits.split([len(values) for values in ASPECTS.values()], 1), strict=True))


def _targets(labels: list[tuple[str, ...]]) -> torch.Tensor:
    return torch.tensor([[values.index(x) for x, values in zip(row, ASPECTS.values(), strict=True)] for row in labels])


def blurred(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Some drawings softened, noisy, shifted in tone: generated pictures are never as clean as drawn ones."""
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    if rng.random() < 0.4:
        small = nn.functional.interpolate(pixels, scale_factor=float(rng.uniform(0.4, 0.8)), mode="area")
        pixels = nn.functional.interpolate(small, size=pixels.shape[-2:], mode="bilinear")
    gain = 1 + 0.06 * torch.randn(len(pixels), 1, 1, 1)
    return (pixels * gain + 0.05 * torch.randn(len(pixels), 3, 1, 1) + 0.03 * torch.randn_like(pixels)).clamp(-1, 1)


@torch.no_grad()
def read(model: Classifier, pixels: torch.Tensor, batch: int = 100) -> list[tuple[str, ...]]:
    """(object, colour, place, style) seen in each picture."""
    best = [
        torch.stack([part.argmax(1) for part in split(model(part_pixels)).values()], 1)
        for part_pixels in pixels.split(batch)
    ]
    return [
        tuple(values[i] for i, values in zip(row, ASPECTS.values(), strict=True)) for row in torch.cat(best).tolist()
    ]


def accuracy(seen: list[tuple[str, ...]], true: list[tuple[str, ...]]) -> dict[str, float]:
    """The share read right, by aspect."""
    right = np.array(seen) == np.array(true)
    return dict(zip(ASPECTS, right.mean(0).round(4).tolist(), strict=True))


def trained(
    work: Path,
    name: str = "classifier",
    pools: Sequence[str] = ("pictures",),
    exam: str = "exam-pictures",
    aspects: Collection[str] = tuple(ASPECTS),
) -> tuple[Classifier, dict[str, float]]:
    """The classifier of `aspects` kept in `work`, trained first if need be, and its accuracy on drawings it never saw.

    It sees the pools in turn.
    """
    torch.manual_seed(0)
    model, shown, path = Classifier(), [Pool(work / pool) for pool in pools], work / f"{name}.pt"

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([4, step])
        pool = shown[step % len(shown)]
        chosen = rng.integers(len(pool), size=PLAN.batch)
        targets = _targets(pool.labels(chosen))
        logits = split(model(blurred(vae.pixels(pool.pictures(chosen)), rng))).items()
        parts = [(part, targets[:, i]) for i, (aspect, part) in enumerate(logits) if aspect in aspects]
        return sum(nn.functional.cross_entropy(part, target) for part, target in parts)

    if path.exists():
        done = load_average(path, model)
    if not path.exists() or done < PLAN.steps:
        fit(name, model, loss_of, PLAN, work)
    model.eval()
    asked = Pool(work / exam, EXAM_OFFSET)
    every = np.arange(len(asked))
    return model, accuracy(read(model, vae.pixels(asked.pictures(every))), asked.labels(every))
