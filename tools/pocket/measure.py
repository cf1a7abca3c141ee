"""How good the measuring CLIP is: `python -m tools.pocket.measure` prints what it finds and tells apart."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tools.make_sample_data import STYLE_CONTENTS, SUBJECT_SCENES, draw_subject
from tools.pocket import world
from tools.pocket.captions import caption
from tools.pocket.clip import tokens
from tools.pocket.pool import EXAM_OFFSET, Pool
from tools.pocket.train import FOLDER

Features = Callable[[list], torch.Tensor]


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive scores above a negative."""
    difference = positive[:, None] - negative[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def told_apart(members: torch.Tensor, others: torch.Tensor) -> float:
    """AUC of the cosine to the members' mean feature, a member's own left out; unit features (N, D) and (M, D)."""
    unit = torch.nn.functional.normalize
    rest = unit((members.sum(0) - members) / (len(members) - 1), dim=1)
    own, foreign = (members * rest).sum(1), others @ unit(members.mean(0), dim=0)
    return auc(own.numpy(), foreign.numpy())


def looks(features: Features, style: str, seed: int = 500) -> float:
    """An unseen style against the base's styles, over the same contents."""
    members = [world.draw(*c, style, seed + i) for i, c in enumerate(STYLE_CONTENTS)]
    others = [world.draw(*c, s, seed + i) for i, c in enumerate(STYLE_CONTENTS) for s in world.STYLES]
    return told_apart(features(members), features(others))


def subject(features: Features, kind: str | None = "cat", seed: int = 700) -> float:
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


@torch.no_grad()
def retrieval(model, tokenizer, pool: Pool, features: Features, count: int = 400) -> dict[str, float]:
    """Among `count` test pictures: is the caption nearest to a picture its own, and the other way round?

    Pictures whose full captions are equal count as right for one another; half show held-out combinations.
    """
    labels = pool.labels(np.arange(count))
    images = features(list(pool.pictures(np.arange(count))))
    texts = [caption(*label) for label in labels]
    words = torch.nn.functional.normalize(
        model.get_text_features(input_ids=tokens(tokenizer, texts)).pooler_output, dim=1
    )
    likeness, same = images @ words.T, torch.tensor([[a == b for b in texts] for a in texts])
    to_text = same[torch.arange(count), likeness.argmax(1)].float().mean()
    to_image = same.T[torch.arange(count), likeness.argmax(0)].float().mean()
    return {"picture to caption": round(to_text.item(), 4), "caption to picture": round(to_image.item(), 4)}


def clip_features(model) -> Features:
    """Unit image features of PIL pictures or uint8 arrays, 128 x 128."""

    @torch.no_grad()
    def features(pictures: list) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(100)])
        return torch.nn.functional.normalize(found, dim=1)

    return features


def report(model, tokenizer, work: Path) -> dict:
    """All figures of the measuring model."""
    features = clip_features(model)
    return {
        "retrieval among 400": retrieval(model, tokenizer, Pool(work / "exam-pictures", EXAM_OFFSET), features),
        "AUC of unseen styles": {style: round(looks(features, style), 4) for style in world.UNSEEN_STYLES},
        "AUC of the subject among cats": round(subject(features), 4),
        "AUC of the subject among all": round(subject(features, None), 4),
    }


def main() -> None:
    from transformers import CLIPModel, CLIPTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER / "clip")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = CLIPModel.from_pretrained(args.folder).eval(), CLIPTokenizer.from_pretrained(args.folder)
    print(json.dumps(report(model, tokenizer, args.work), indent=2))


if __name__ == "__main__":
    main()
