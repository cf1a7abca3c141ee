"""Measure how much two adapters change the same directions of the same layers.

With ΔW = U S Vᵀ, what an adapter reads is the matrix ΔWᵀΔW = V S² Vᵀ (in, in), and what it writes is ΔWΔWᵀ = U S² Uᵀ
(out, out). The alignment of two such matrices P and Q is tr(P Q) / √(tr P² tr Q²), the RV coefficient of Robert and
Escoufier (1976, doi:10.2307/2347233): 0 if no direction of one has a part in any of the other, 1 if they are
proportional. Directions count by their squared singular values, so that those which do nothing do not count. Over all
rotations of one of two n x n matrices, the mean is tr P tr Q / (n √(tr P² tr Q²)); that is taken off, and the rest
divided by what then remains to 1. All of it follows from singular vectors: of a low-rank product no matrix is formed
that is larger than its factors.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from sdlora.adapters.state import AdapterState
from sdlora.editing.layer_spectrum import block_name
from sdlora.editing.low_rank import Factors, layer_factors, weights_for
from sdlora.editing.merge_methods import significant
from sdlora.editing.merging import require_alike
from sdlora.events import OnProgress, unwatched

SAME, COMMON = 0.5, 0.1
"""Cosine from which two changes are called the same, or opposite; alignment from which directions are called common.

Measured on the bundled model: an adapter with itself has 1, random ones at most 0.002, a style and a subject trained
with two seeds 0.06, with one seed 0.16 in what they read, one style trained with two seeds a cosine of 0.10 and 0.27 in
what they write. It says what two adapters have in common, not how much of each a mix keeps
(docs/decisions/merging-that-disturbs-less.md).
"""


class LayerOverlap(NamedTuple):
    """Overlap of two updates A and B of one layer."""

    path: str
    norms: tuple[float, float]
    """Frobenius norms of A and B."""
    cosine: float
    """⟨A, B⟩ / (‖A‖ ‖B‖), -1 to 1; 0 if one of them is zero."""
    inputs: float
    """Alignment of what both read beyond that of random directions: 0 for those, 1 for the same; a little below 0 if
    they avoid each other."""
    outputs: float
    """The same of what both write."""


class Overlap(NamedTuple):
    """Overlap of two adapters in a group of layers: a block, or all of them."""

    layers: int
    """Layers that both change."""
    cosine: float
    """⟨A, B⟩ / (‖A‖ ‖B‖) with all layers of the group as one vector: what only one changes makes it smaller."""
    inputs: float
    """Mean of ``LayerOverlap.inputs`` over the layers that both change, weighted by ‖A‖ ‖B‖."""
    outputs: float
    """The same of what they write."""
    shared: float
    """Share of both squared norms, the mean of the two, that lies in layers which both change: 0 to 1."""


class AdapterOverlap(NamedTuple):
    """Overlap of two adapters: of all layers, by block in the model's order, and layer by layer."""

    names: tuple[str, str]
    whole: Overlap
    blocks: dict[str, Overlap]
    layers: list[LayerOverlap]


def overlap(
    one: tuple[str, AdapterState],
    other: tuple[str, AdapterState],
    base: str = "",
    on_progress: OnProgress = unwatched,
) -> AdapterOverlap:
    """Compare two adapters (name, state) of any methods; DoRA and (IA)³ need the ``base``.

    ``on_progress`` counts layers. Raises ConfigError, MismatchError, ModelError.
    """
    (name, first), (other_name, second) = one, other
    require_alike([one, other])
    weights = weights_for(base, first, second)
    paths = list(dict.fromkeys([*first.modules, *second.modules]))
    found: list[LayerOverlap] = []
    for number, path in enumerate(paths):
        weight = weights(path)
        a, b = (
            layer_factors(path, state.modules[path], weight) if path in state.modules else None
            for state in (first, second)
        )
        found.append(compare_updates(path, a, b))
        on_progress(number + 1, len(paths))
    blocks: dict[str, list[LayerOverlap]] = {}
    for layer in found:
        blocks.setdefault(block_name(layer.path), []).append(layer)
    summaries = {block: summarize(layers) for block, layers in blocks.items()}
    return AdapterOverlap((name, other_name), summarize(found), summaries, found)


def compare_updates(path: str, one: Factors | None, other: Factors | None) -> LayerOverlap:
    """Compare the updates of one layer, either of which may be None: not changed."""
    if not one or not other:
        own = [float(factors.values.norm()) if factors else 0.0 for factors in (one, other)]
        return LayerOverlap(path, (own[0], own[1]), 0.0, 0.0, 0.0)
    a, b = significant(one), significant(other)
    norms = float(a.values.norm()), float(b.values.norm())
    if not all(norms):
        return LayerOverlap(path, norms, 0.0, 0.0, 0.0)
    left, right = a.left.T @ b.left, a.right @ b.right.T
    inner = float((a.values[:, None] * left * right * b.values).sum())
    inputs, outputs = (
        _alignment(a.values.square(), crossed, b.values.square(), size)
        for crossed, size in ((right, a.right.shape[1]), (left, len(a.left)))
    )
    return LayerOverlap(path, norms, inner / (norms[0] * norms[1]), inputs, outputs)


def summarize(layers: Sequence[LayerOverlap]) -> Overlap:
    """Return the overlap of a group of layers."""
    both = [layer for layer in layers if all(layer.norms)]
    squares = [sum(layer.norms[side] ** 2 for layer in layers) for side in (0, 1)]
    within = [sum(layer.norms[side] ** 2 for layer in both) for side in (0, 1)]
    products = [layer.norms[0] * layer.norms[1] for layer in both]
    total = sum(products) or 1.0
    inner = math.fsum(layer.cosine * product for layer, product in zip(both, products, strict=True))
    return Overlap(
        len(both),
        inner / (math.sqrt(squares[0] * squares[1]) or 1.0),
        sum(layer.inputs * product for layer, product in zip(both, products, strict=True)) / total,
        sum(layer.outputs * product for layer, product in zip(both, products, strict=True)) / total,
        sum(part / (square or 1.0) for part, square in zip(within, squares, strict=True)) / 2,
    )


def _alignment(one: torch.Tensor, crossed: torch.Tensor, other: torch.Tensor, size: int) -> float:
    """Return the alignment of P and Q (``size`` x ``size``) beyond chance, from their eigenvalues ``one`` (k,) and
    ``other`` (l,) and the cosines ``crossed`` (k, l) of their eigenvectors.
    """
    norm = float(one.norm() * other.norm())
    found = float((one[:, None] * crossed.square() * other).sum()) / norm
    chance = float(one.sum() * other.sum()) / (size * norm)
    return (found - chance) / (1 - chance) if chance < 1 - 1e-9 else found


def describe_overlap(found: AdapterOverlap) -> str:
    """Return the overlap as one sentence in plain words."""
    one, other = found.names
    whole = found.whole
    if not whole.layers:
        return f"{one} and {other} change no layer in common: each keeps its layers to itself."
    if whole.cosine >= SAME:
        return f"{one} and {other} are nearly the same change: together they act like one of them at a higher scale."
    if whole.cosine <= -SAME:
        return f"{one} and {other} are nearly opposite changes: together they undo each other."
    reads, writes = whole.inputs >= COMMON, whole.outputs >= COMMON
    if reads and writes:
        return f"{one} and {other} read and write partly the same directions: they have much in common."
    if writes:
        return f"{one} and {other} write partly the same directions, as adapters of similar things do."
    if reads:
        return (
            f"{one} and {other} read partly the same directions, as adapters trained with one seed do, and write "
            "different ones."
        )
    return (
        f"{one} and {other} change the same layers in nearly independent directions: neither repeats or undoes the "
        "other. How well they mix, only images tell."
    )


def overlap_table(found: AdapterOverlap, layers: bool = False) -> Iterator[str]:
    """Yield the figures as lines of text: all layers, each block, and with ``layers`` each layer."""
    yield f"{'cosine':>7} {'read':>6} {'written':>7} {'shared':>6}  {'layers':>6}"
    for name, group in {"all": found.whole, **found.blocks}.items():
        figures = f"{group.cosine:7.3f} {group.inputs:6.3f} {group.outputs:7.3f} {group.shared:6.0%}"
        yield f"{figures}  {group.layers:6}  {name}"
    for layer in found.layers if layers else ():
        yield f"{layer.cosine:7.3f} {layer.inputs:6.3f} {layer.outputs:7.3f} {'':6}  {'':6}  {layer.path}"
