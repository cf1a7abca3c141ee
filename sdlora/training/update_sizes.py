"""Norm and effective rank of an adapter's updates by block, without forming a dW."""

from collections.abc import Iterable

import torch

from sdlora.adapters.state import AdapterState
from sdlora.editing.layer_spectrum import block_name
from sdlora.editing.low_rank import effective_rank, low_rank_product
from sdlora.signals import BlockUpdate


def block_updates(state: AdapterState) -> list[BlockUpdate]:
    """Return the updates of ``state`` by block, in the model's order.

    Layers whose update is no product of two small factors are left out: it would have to be formed whole.
    """
    blocks: dict[str, list[torch.Tensor]] = {}
    for path, module in state.modules.items():
        factors = low_rank_product(module)
        if factors is not None:
            blocks.setdefault(block_name(path), []).append(singular_values(*factors))
    return [BlockUpdate(block, _norm(values), _mean_rank(values)) for block, values in blocks.items()]


def singular_values(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return those of ``up`` (out, r) @ ``down`` (r, in), (r,) float64, from the r x r Gram matrices of both.

    The squares are the eigenvalues of A½ B A½ with A = upᵀ up and B = down downᵀ.
    """
    a, b = (up.T @ up).double(), (down @ down.T).double()
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt()
    return torch.linalg.eigvalsh(root.T @ b @ root).clamp(min=0).sqrt()


def _norm(layers: Iterable[torch.Tensor]) -> float:
    return float(torch.cat(list(layers)).square().sum().sqrt())


def _mean_rank(layers: Iterable[torch.Tensor]) -> float:
    ranks = [effective_rank(values) for values in layers if float(values.sum())]
    return sum(ranks) / len(ranks) if ranks else 0.0
