"""Penalty on how alike the adapter changes what the denoiser reads of two concepts.

The update dW of a layer that reads text answers the words of each concept, a and b, with dW a and dW b. Trained
together they become nearly parallel, and each trigger calls some of the other's subject. The penalty is the mean of
cos2(dW a, dW b) over those layers and all pairs of concepts; a and b are the mean outputs of the text encoder over the
tokens of trigger and class. Orthogonal Adaptation (arXiv:2312.02432) wants the same of adapters that are trained apart,
by fixed orthogonal subspaces; this needs none, and no state: it is a function of the weights, so a resumed run keeps
its bits.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch

from sdlora.adapters.trainable import TrainablePart
from sdlora.data.settings import Concept
from sdlora.errors import ConfigError

READERS = ("attn2.to_k", "attn2.to_v")
"""Ends of the classic paths of layers that read text."""
Update = tuple[torch.Tensor, torch.Tensor]
"""Factors up (out, rank) and down (rank, in) of a LoRA."""


def concept_texts(concepts: Sequence[Concept]) -> list[str]:
    """Return the words of each concept that has a trigger: trigger and class."""
    return [f"{one.trigger} {one.class_name}".strip() for one in concepts if one.trigger.strip()]


def reading_updates(parts: Iterable[TrainablePart]) -> list[Update]:
    """Return the LoRA's updates of all layers that read text. Raises ConfigError if it has none."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for part in parts:
        if part.path.endswith(READERS):
            layers.setdefault(part.path, {})[part.name] = part.parameter
    updates = [(tensors["up"], tensors["down"]) for tensors in layers.values() if tensors.keys() == {"up", "down"}]
    if not updates:
        raise ConfigError(
            "loss.concept_overlap: no LoRA layer reads text; take adapter.method = lora with cross-attention among its "
            "targets, or set it to 0"
        )
    return updates


def concept_overlap(updates: Sequence[Update], rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return the mean cos2 of the changes to each two of the texts, a scalar in [0, 1] with its graph.

    ``rows`` (N, L, D) are the texts as the text encoder gives them, ``lengths`` their numbers of tokens without special
    ones.
    """
    means = torch.stack([row[1 : 1 + length].float().mean(0) for row, length in zip(rows, lengths, strict=True)])
    pairs = torch.tensor(list(combinations(range(len(means)), 2)), device=rows.device)
    overlaps = []
    for up, down in updates:
        change = torch.nn.functional.normalize(means @ down.T @ up.T, dim=1, eps=1e-6)  # 0 where up is, at the start.
        overlaps.append((change[pairs[:, 0]] * change[pairs[:, 1]]).sum(1).square().mean())
    return torch.stack(overlaps).mean()
