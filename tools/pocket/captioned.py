"""Measure pocket's captioner: ``python -m tools.pocket.captioned`` captions drawings whose contents are known.

Objects, colours and places are right where the caption names them; what it leaves out as unsure counts as not named.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdlora.captioning.captioner import caption_images
from sdlora.captioning.pocket import PocketCaptioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.vision.training_images import batches
from tools.pocket import exam_looks, world
from tools.pocket.painters import PAINTERS, Painter
from tools.pocket.train import FOLDER

PARTS = ("object", "colour", "place")
VOCABULARY = (world.OBJECTS, world.COLOURS, world.PLACES)
SET = 10
"""Images of a set, of which the captioner sees what they share."""
GOAL = {"object": 0.95, "colour": 0.90, "place": 0.95}
"""Shares of flat drawings that are to be named rightly, whatever is unsure."""


def drawings(painter: Painter, count: int, seed: int, size: int = 128) -> tuple[list[world.Combination], list]:
    """Contents that training never saw, and a drawing of each."""
    choices, rng = world.combinations(kept_out=True), np.random.default_rng(seed)
    contents = [choices[i] for i in rng.integers(len(choices), size=count)]
    return contents, [
        painter(world.scene(*each, seed=seed + i), np.random.default_rng(seed + i), size)
        for i, each in enumerate(contents)
    ]


def parts_of(caption: str) -> tuple[str | None, ...]:
    """The object, colour and place that a plain caption names."""
    padded = f" {caption} "
    return tuple(next((word for word in words if f" {word} " in padded), None) for words in VOCABULARY)


def judge(captioner: PocketCaptioner, contents: list[world.Combination], images: list[Image.Image]) -> dict:
    """For each part: the share of all drawings in which it is named, and named rightly, in sets of ten."""
    captions = [caption for part in batches(images, SET) for caption in caption_images(captioner, part)]
    named = [parts_of(caption) for caption in captions]
    found = {}
    for number, part in enumerate(PARTS):
        right = np.mean([said[number] == true[number] for said, true in zip(named, contents, strict=True)])
        told = np.mean([said[number] is not None for said in named])
        found[part] = {"named": round(float(told), 3), "right": round(float(right), 3)}
    return found


def report(folder: Path, count: int, seed: int) -> dict:
    """Figures by look: with every part named, however unsure, and with the default threshold."""
    looks = {**PAINTERS, **exam_looks.PAINTERS}
    drawn = {name: drawings(painter, count, seed) for name, painter in looks.items()}
    settings = {"all named": CaptionSettings(threshold=0), "by default": CaptionSettings()}
    captioners = {how: PocketCaptioner.load(folder, each, torch.device("cpu")) for how, each in settings.items()}
    return {how: {name: judge(c, *each) for name, each in drawn.items()} for how, c in captioners.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER / "clip", help="the CLIP to measure")
    parser.add_argument("--count", type=int, default=200, help="drawings of each look")
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = report(args.folder, args.count, args.seed)
    print(json.dumps(found, indent=2))
    flat = found["all named"]["flat"]
    print({part: f"{flat[part]['right']:.1%} of {goal:.0%}" for part, goal in GOAL.items()})


if __name__ == "__main__":
    main()
