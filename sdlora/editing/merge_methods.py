"""Ways to combine the updates of one layer, each already multiplied by its adapter's scale.

A way is a function from the updates to one update, and a row in ``METHODS``. It is asked only for layers that at least
two adapters change: an update that has a layer to itself disturbs nobody, and is taken as it is. So one adapter alone
always gives itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sdlora.editing.low_rank import SMALL, Factors, factorize_matrix, factorize_product
from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean
from sdlora.seeds import derive


@dataclass(frozen=True)
class Update:
    """ΔW (out, in · kernel) of a layer: the product of ``up`` (out, r) and ``down`` (r, in · kernel), or, without a
    ``down``, the matrix ``up``.
    """

    up: torch.Tensor
    down: torch.Tensor | None = None

    @property
    def matrix(self) -> torch.Tensor:
        """ΔW itself."""
        return self.up if self.down is None else self.up @ self.down

    @property
    def rank(self) -> int:
        """Width of the product; of a matrix its smaller side."""
        return min(self.up.shape) if self.down is None else len(self.down)

    def factors(self) -> Factors:
        """Return the singular value decomposition, without forming ΔW from a product."""
        return factorize_matrix(self.up) if self.down is None else factorize_product(self.up, self.down)

    def product(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two factors of ΔW."""
        if self.down is not None:
            return self.up, self.down
        found = significant(self.factors())
        return (found.left * found.values).float(), found.right.float()


class MergeMethod(NamedTuple):
    """A way to combine updates."""

    combine: Callable[..., Update]
    """Function of the updates and, as keywords, its ``options``."""
    options: Mapping[str, Any]
    """Options that it has, with their defaults."""
    full_rank: bool = False
    """The result is no product of small factors, whatever the updates are."""
    compares_sizes: bool = False
    """``combine`` also takes ``sizes``: for each update the mean absolute entry of its adapter over all its layers."""


class MergeOptions(NamedTuple):
    """A method by name, and its options; None stands for the method's own default."""

    method: str = "sum"
    density: float | None = None
    """Share of the entries of each update that TIES and DARE keep: above 0, and 1 at most."""
    seed: int | None = None
    """Seed of the entries that DARE keeps."""
    protect: float | None = None
    """Share of the earlier adapters' energy whose inputs ``orthogonal`` keeps free of later ones: above 0, and 1 at
    most.
    """

    def check(self) -> "MergeOptions":
        """Return the options themselves. Raises ConfigError for an unknown method, a value out of range, or an option
        that the method does not have.
        """
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS) or f"there are {', '.join(METHODS)}"
            raise ConfigError(f"method = {self.method}: there is no such way to merge; {hint}")
        for name, value in self._asdict().items():
            if name == "method" or value is None:
                continue
            if name not in METHODS[self.method].options:
                others = " and ".join(other for other, row in METHODS.items() if name in row.options)
                raise ConfigError(f"{name}: {self.method} has no {name}; leave it out, or use {others}")
            if name != "seed" and not 0 < value <= 1:
                raise ConfigError(f"{name} = {value}: give a share above 0, and 1 at most")
        return self

    def values(self) -> dict[str, Any]:
        """Return the options of the method, with its defaults for those that are None."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: given.get(name, default) for name, default in METHODS[self.method].options.items()}


def weighted_sum(updates: Sequence[Update]) -> Update:
    """Add the updates: ΔW = Σ ΔWᵢ (task arithmetic, arXiv:2212.04089). Factors are put side by side: ranks add up."""
    products = [(update.up, update.down) for update in updates if update.down is not None]
    if len(products) < len(updates):
        total = updates[0].matrix.clone()
        for update in updates[1:]:
            total += update.matrix
        return Update(total)
    return Update(torch.cat([up for up, _ in products], dim=1), torch.cat([down for _, down in products]))


def ties(updates: Sequence[Update], density: float) -> Update:
    """Trim, elect a sign, merge (TIES, Yadav et al. 2023, arXiv:2306.01708, algorithm 1), entry by entry of ΔW.

    Of each update the share ``density`` of the largest entries is kept (per layer; the paper trims all layers as one
    vector), the rest set to 0. An entry's sign is that of the sum over all updates: the one with more total magnitude.
    The result is the mean of the entries of that sign, so that equal updates give their trimmed self and not a
    multiple. λ is 1: scales are the updates' own.
    """
    trimmed = torch.stack([_trimmed(update.matrix, density) for update in updates])
    agreeing = (trimmed * trimmed.sum(0).sign()) > 0
    return Update((trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1))


def dare(updates: Sequence[Update], density: float, seed: int) -> Update:
    """Drop and rescale (DARE, Yu et al. 2023, arXiv:2311.03099), then add: Σ mᵢ ∘ ΔWᵢ / density.

    Each entry of the mask mᵢ is 1 with probability ``density`` (1 - p in the paper), on its own: the expectation is the
    sum. Masks come from ``seed`` and the update's position, on the CPU.
    """
    parts = []
    for number, update in enumerate(updates):
        generator = torch.Generator().manual_seed(derive(seed, "dare", number))
        matrix = update.matrix
        mask = torch.rand(matrix.shape, generator=generator) < density
        parts.append(matrix * mask.to(matrix.device) / density)
    return Update(torch.stack(parts).sum(0))


def directions(updates: Sequence[Update]) -> Update:
    """Add directions and magnitudes apart: row o is mₒ · dₒ / ‖dₒ‖, with dₒ = Σ ΔWᵢₒ / ‖ΔWᵢₒ‖ and mₒ² = Σ ‖ΔWᵢₒ‖².

    Magnitudes are split from directions by output, as in DoRA (arXiv:2402.09353), and combined on their own as
    DO-Merging does (arXiv:2505.15875): a strong update no longer decides the direction alone. mₒ is what the sum of
    independent rows would have. Rows are scaled, so factors are put side by side: ranks add up.
    """
    lengths = [_row_lengths(update) for update in updates]
    tiny = torch.finfo(torch.float32).tiny
    units = [
        Update(update.up / length.clamp(min=tiny)[:, None], update.down)
        for update, length in zip(updates, lengths, strict=True)
    ]
    total = weighted_sum(units)
    wanted = torch.stack(lengths).square().sum(0).sqrt()
    return Update(total.up * (wanted / _row_lengths(total).clamp(min=SMALL))[:, None], total.down)


def orthogonal(updates: Sequence[Update], protect: float) -> Update:
    """Let each update read only what the earlier ones do not: Σ ΔWᵢ (I - Pᵢ), with P₁ = 0.

    Pᵢ projects onto the leading right singular vectors of the updates before i, as many of each as hold the share
    ``protect`` of its squared norm. For inputs in that space the earlier adapters' outputs stay as they are, which is
    what Orthogonal Adaptation (arXiv:2312.02432) trains for and this does afterwards, by Gram and Schmidt in
    the order given. Ranks add up, and what is orthogonal already is unchanged.
    """
    first, *rest = [Update(*update.product()) for update in updates]
    kept, spaces = [first], [_read_space(first, protect)]
    for update in rest:
        basis, _ = torch.linalg.qr(torch.cat(spaces, dim=1))
        assert update.down is not None
        spaces.append(_read_space(update, protect))
        down = update.down.double()
        kept.append(Update(update.up, (down - down @ basis @ basis.T).to(update.down.dtype)))
    return weighted_sum(kept)


def select(updates: Sequence[Update], sizes: Sequence[float]) -> Update:
    """Take the one update of the layer that stands out most in its adapter (after K-LoRA, arXiv:2502.18461).

    Compared are the sums of the K largest |entries|, K = the product of all ranks (of two rank 16: 256), each divided
    by its adapter's mean absolute entry (``sizes``): the paper's γ. The paper also multiplies the style's by a factor
    that grows while sampling, so that a layer changes hands at some step; a file has one choice for all steps.
    """
    count, scores = math.prod(update.rank for update in updates), []
    for update, size in zip(updates, sizes, strict=True):
        entries = update.matrix.abs().flatten()
        scores.append(float(entries.topk(min(count, len(entries))).values.sum()) / size if size else 0.0)
    return updates[max(range(len(scores)), key=scores.__getitem__)]


METHODS: Mapping[str, MergeMethod] = {
    "sum": MergeMethod(weighted_sum, {}),
    "ties": MergeMethod(ties, {"density": 0.5}, full_rank=True),
    "dare": MergeMethod(dare, {"density": 0.5, "seed": 0}, full_rank=True),
    "directions": MergeMethod(directions, {}),
    "orthogonal": MergeMethod(orthogonal, {"protect": 0.5}),
    "select": MergeMethod(select, {}, compares_sizes=True),
}


def significant(factors: Factors) -> Factors:
    """Return ``factors`` without what is zero or rounding; no part at all of a zero matrix."""
    count = int((factors.values > SMALL * factors.values[:1]).sum())
    return Factors(factors.left[:, :count], factors.values[:count], factors.right[:count])


def _trimmed(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """Return ``matrix`` with all but the share ``density`` of its largest entries set to 0; ties in size all stay."""
    sizes = matrix.abs()
    keep = max(1, round(density * sizes.numel()))
    return matrix * (sizes >= sizes.flatten().kthvalue(sizes.numel() - keep + 1).values)


def _row_lengths(update: Update) -> torch.Tensor:
    """Return the norms (out,) of the rows of ΔW: of a product, the roots of the diagonal of up (down downᵀ) upᵀ."""
    if update.down is None:
        return update.up.norm(dim=1)
    up, down = update.up.double(), update.down.double()
    return ((up @ (down @ down.T)) * up).sum(1).clamp(min=0).sqrt().to(update.up.dtype)


def _read_space(update: Update, share: float) -> torch.Tensor:
    """Return an orthonormal basis (in · kernel, k) of the inputs that hold ``share`` of the update's squared norm."""
    found = significant(update.factors())
    if not len(found.values):
        return found.right.T
    energies = found.values.square().cumsum(0)
    count = int((energies < share * energies[-1] * (1 - 1e-12)).sum()) + 1
    return found.right[:count].T
