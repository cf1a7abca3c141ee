"""Singular value decompositions of updates, truncated to a rank or a share of the energy.

The best approximation of a matrix of rank r keeps its r largest singular values (Eckart and Young, 1936); the share of
the squared Frobenius norm that it keeps is the sum of their squares over the sum of all squares.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from sdlora.adapters.compatibility import require_compatible
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.errors import ConfigError, NonFiniteError
from sdlora.families.layer_weights import locate_tensors
from sdlora.families.meta_model import build_meta_model

SMALL = 1e-7
"""Ratio to the largest singular value below which values are rounding, in float32 products."""
CONVOLUTIONS = (".conv", ".conv1", ".conv2", ".conv_in", ".conv_out")
"""Path endings of 3 x 3 convolutions: a LoHa's tensors do not tell its kernel."""


class Cut(NamedTuple):
    """Truncation of an update: the ``rank`` strongest parts, or the fewest that keep a share of its ``energy``.

    If both are given, the smaller number of parts. At least one is kept.
    """

    rank: int | None = None
    energy: float | None = None
    """Share of the squared Frobenius norm: 0 to 1."""

    def check(self) -> "Cut":
        """Return the cut itself. Raises ConfigError for impossible values."""
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank = {self.rank}: give 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy = {self.energy}: give a share above 0, and 1 at most")
        return self

    def parts(self, values: torch.Tensor) -> int:
        """Return the number of the singular ``values`` (k,), largest first, to keep."""
        count = int((values > SMALL * values[:1]).sum()) or 1
        if self.energy is not None:
            sums = values.square().cumsum(0)
            enough = int((sums < self.energy * sums[-1] * (1 - 1e-12)).sum()) + 1
            count = min(count, enough)
        return min(count, self.rank or count)


class Factors(NamedTuple):
    """A matrix (out, in) as ``left`` (out, k) · diag(``values``) · ``right`` (k, in), float64, largest value first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def kept(self, count: int) -> float:
        """Return the share of the squared Frobenius norm in the first ``count`` parts; 1 for a zero matrix."""
        squares = self.values.square()
        return float(squares[:count].sum() / squares.sum()) if float(squares.sum()) else 1.0

    def module(self, count: int, kernel: Sequence[int]) -> ModuleState:
        """Return the first ``count`` parts as a LoRA with alpha = rank; each factor takes the root of the values."""
        root = self.values[:count].sqrt()
        up, down = self.left[:, :count] * root, root[:, None] * self.right[:count]
        if kernel:
            down, up = down.reshape(count, -1, *kernel), up[:, :, None, None]
        return ModuleState({"down": down.float(), "up": up.float()}, float(count))


def factorize_product(up: torch.Tensor, down: torch.Tensor) -> Factors:
    """Factorize ``up`` (out, r) @ ``down`` (r, in) without forming it: QR of both, SVD of r x r."""
    left, a = torch.linalg.qr(_finite(up))
    right, b = torch.linalg.qr(_finite(down).T)
    u, values, v = torch.linalg.svd(a @ b.T)
    return Factors(left @ u[:, : len(values)], values, v[: len(values)] @ right.T)


def factorize_matrix(matrix: torch.Tensor) -> Factors:
    """Factorize a ``matrix`` (out, in) by the eigenvectors of the smaller of its Gram matrices, in float64."""
    wide = _finite(matrix)
    if len(wide) > wide.shape[1]:
        other = factorize_matrix(wide.T)
        return Factors(other.right.T, other.values, other.left.T)
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    values, left = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    right = (left.T @ wide) / values.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Factors(left, values, right)


def effective_rank(values: torch.Tensor) -> float:
    """Return exp of the entropy of the normalised singular ``values`` (Roy and Vetterli, 2007); 1 if all are zero."""
    shares = values / values.sum() if float(values.sum()) else values.new_tensor([1.0])
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def kernel_of(path: str, module: ModuleState) -> tuple[int, ...]:
    """Return the kernel of the convolution that ``module`` is for; empty for a linear layer, and for 1 x 1 in linear
    shape.
    """
    own = module.parametrization
    _, _, *kernel = own.delta_shape(module.tensors)
    if kernel:
        return tuple(side or 0 for side in kernel)
    return (3, 3) if own.flattens_kernel and path.endswith(CONVOLUTIONS) else ()


def low_rank_product(module: ModuleState) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return ``up`` (out, r) and ``down`` (r, in) whose product is the update; None if it is no such product."""
    factors = module.parametrization.low_rank_factors(module.tensors)
    return factors and (module.scale * factors[0], factors[1])


def delta_matrix(path: str, module: ModuleState, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the update (out, in · kernel), float32. Raises ConfigError if it needs the base's ``weight``, or has a
    bias.
    """
    if "diff_b" in module.tensors:
        raise ConfigError(
            f"{path}: a whole difference changes the bias too, which a LoRA cannot hold; keep it as it is"
        )
    if weight is not None:
        return module.delta_weight(weight).flatten(1)
    if module.parametrization.needs_base:
        raise ConfigError(
            f"{path}: {module.parametrization.title} changes a weight by what the weight is; name the base model"
        )
    return (module.scale * module.parametrization.unscaled_delta(module.tensors)).flatten(1)


def needs_base(state: AdapterState) -> bool:
    """Return whether any update of the adapter depends on the base's weight."""
    return any(module.parametrization.needs_base for module in state.modules.values())


def layer_factors(path: str, module: ModuleState, weight: torch.Tensor | None) -> Factors:
    """Factorize one layer's update. Raises what ``delta_matrix`` raises."""
    pair = low_rank_product(module)
    return factorize_product(*pair) if pair else factorize_matrix(delta_matrix(path, module, weight))


def _finite(matrix: torch.Tensor) -> torch.Tensor:
    """Convert ``matrix`` to float64. Raises NonFiniteError if it is not finite."""
    if not matrix.isfinite().all():
        raise NonFiniteError("an update is not finite; take smaller scales, or another adapter")
    return matrix.double()


Weights = Callable[[str], torch.Tensor | None]
"""Function from a layer's classic path to the base's weight; None if no base is given."""


def weights_for(base: str, *states: AdapterState) -> Weights:
    """Return a reader of the layers of ``states`` in ``base`` (a folder, a file or a hub id); of none if it is empty.

    Raises ModelError if it is no base, MismatchError if one of the adapters does not fit it.
    """
    if not base:
        return lambda path: None
    models = build_meta_model(base).models
    for state in states:
        require_compatible(models, state)
    found = locate_tensors(base, list(dict.fromkeys(path for state in states for path in state.modules)))
    return lambda path: found[path].read().float()
