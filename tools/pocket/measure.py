"""Measure the CLIP that measures: `python -m tools.pocket.measure` prints what it retrieves and separates."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdlora.evaluation.fidelity import Clip, likeness, likeness_within
from tools.make_sample_data import STYLE_CONTENTS, SUBJECT_SCENES, draw_subject
from tools.pocket import exam_looks, world
from tools.pocket.captions import caption
from tools.pocket.painters import PAINTERS, Painter
from tools.pocket.pool import EXAM_OFFSET, Pool
from tools.pocket.train import FOLDER

Features = Callable[[list], torch.Tensor]
SUBJECT_SEEDS = (700, 800, 900, 1000, 1100)
"""Drawings of the first three were looked at when the layer was chosen, the others afterwards."""


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive scores above a negative."""
    difference = positive[:, None] - negative[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def told_apart(members: torch.Tensor, others: torch.Tensor) -> float:
    """AUC of the cosine to the members' mean feature, a member's own left out; unit features (N, D) and (M, D)."""
    return auc(likeness_within(members).numpy(), likeness(others, members).numpy())


def looks(features: Features, style: str, seed: int = 500) -> float:
    """An unseen style against the base's styles, over the same contents."""
    members = [world.draw(*c, style, seed + i) for i, c in enumerate(STYLE_CONTENTS)]
    others = [world.draw(*c, s, seed + i) for i, c in enumerate(STYLE_CONTENTS) for s in world.STYLES]
    return told_apart(features(members), features(others))


def subject(features: Features, kind: str | None, seed: int) -> float:
    """The odd character against ordinary members of its kind (or all kinds), in the same places and styles."""
    members = [draw_subject(place, style, seed + i, 128) for i, (place, style, _) in enumerate(SUBJECT_SCENES)]
    kinds = [kind] if kind else list(world.OBJECTS)
    others = [
        world.draw(k, colour, place, style, seed + i)
        for i, (place, style, _) in enumerate(SUBJECT_SCENES)
        for colour in world.COLOURS
        for k in kinds
    ]
    return told_apart(features(members), features(others))


def retrieval(clip: Clip, pool: Pool, count: int = 400) -> dict[str, float]:
    """Among `count` test pictures: is the caption nearest to a picture its own, and the other way round?

    Pictures whose full captions are equal count as right for one another; half show held-out combinations.
    """
    texts = [caption(*label) for label in pool.labels(np.arange(count))]
    images = clip.images([Image.fromarray(picture) for picture in pool.pictures(np.arange(count))])
    cosines, same = images @ clip.texts(texts).T, torch.tensor([[a == b for b in texts] for a in texts])
    to_text = same[torch.arange(count), cosines.argmax(1)].float().mean()
    to_image = same.T[torch.arange(count), cosines.argmax(0)].float().mean()
    return {"picture to caption": round(to_text.item(), 4), "caption to picture": round(to_image.item(), 4)}


def named(clip: Clip, painter: Painter, count: int = 120, seed: int = 4000, size: int = 128) -> dict[str, float]:
    """Shares of true drawings in one look of which CLIP names the object, the colour and the place rightly.

    The object is one of 12; colour and place are asked for of the right object, among 10 and 6.
    """
    choices, rng = world.combinations(kept_out=True), np.random.default_rng(seed)
    contents = [choices[i] for i in rng.integers(len(choices), size=count)]
    drawn = [
        painter(world.scene(*each, seed=seed + i), np.random.default_rng(seed + i), size)
        for i, each in enumerate(contents)
    ]
    images = clip.images(drawn)
    questions = {
        "object": (world.OBJECTS, 0, lambda word, each: caption(word, None, None)),
        "colour": (world.COLOURS, 1, lambda word, each: caption(each[0], word, None)),
        "place": (world.PLACES, 2, lambda word, each: caption(each[0], None, word)),
    }
    found = {}
    for name, (words, position, ask) in questions.items():
        texts = {text: None for each in contents for text in (ask(word, each) for word in words)}
        features = dict(zip(texts, clip.texts(list(texts)), strict=True))
        right = [
            words[int((torch.stack([features[ask(word, each)] for word in words]) @ image).argmax())] == each[position]
            for image, each in zip(images, contents, strict=True)
        ]
        found[name] = round(float(np.mean(right)), 3)
    return found


def report(clip: Clip, work: Path) -> dict:
    """All figures of the measuring model: for looks of its last features, for the subject of those and the middle's."""
    return {
        "retrieval among 400": retrieval(clip, Pool(work / "exam-pictures", EXAM_OFFSET)),
        "named rightly": {name: named(clip, painter) for name, painter in {**PAINTERS, **exam_looks.PAINTERS}.items()},
        "AUC of unseen styles": {style: round(looks(clip.images, style), 4) for style in world.UNSEEN_STYLES},
        "AUC of the subject": {
            name: {
                f"against {others}, seed {seed}": round(subject(features, kind, seed), 4)
                for others, kind in (("cats", "cat"), ("all", None))
                for seed in SUBJECT_SEEDS
            }
            for name, features in (("last layer", clip.images), ("middle layer", clip.subjects))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER / "clip")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(report(Clip(args.folder), args.work), indent=2))


if __name__ == "__main__":
    main()
