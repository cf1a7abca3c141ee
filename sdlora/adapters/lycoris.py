"""LoHa and LoKr: updates as products of small matrices other than two (LyCORIS, arXiv:2309.14859)."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sdlora.adapters.method import LowRank
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch


class Loha(LowRank):
    """An elementwise product of two low-rank matrices, of rank r² in all (FedPara, arXiv:2108.06098)."""

    method: Literal["loha"] = "loha"

    def init_low_rank(self, base: Any, rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """Gaussians of LyCORIS's deviations: 0.1 and 1 for the first pair, 0 and 1 for the second, which is zero."""
        import torch

        out, inputs = len(base.weight), base.weight[0].numel()
        deviations = {"hada_w1_a": (out, rank, 0.1), "hada_w1_b": (rank, inputs, 1.0), "hada_w2_b": (rank, inputs, 1.0)}
        drawn = {
            name: torch.randn(rows, columns, generator=generator) * deviation
            for name, (rows, columns, deviation) in deviations.items()
        }
        return ModuleState({**drawn, "hada_w2_a": torch.zeros(out, rank)}, alpha)


class Lokr(LowRank):
    """A Kronecker product of a small matrix and a low-rank one (KronA, arXiv:2212.10650)."""

    method: Literal["lokr"] = "lokr"

    factor: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Of `lokr`: the small matrix has at most so many rows and columns, and divides the layer's. More of it makes
    smaller files; as near to the root of the layer's size as can be if not set."""

    def init_low_rank(self, base: Any, rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """The small matrix is drawn evenly, as a linear layer's weights are; the other is zero: whole where its rank
        would not be below half its sides, else by a factor that is zero.
        """
        import torch

        out, inputs = len(base.weight), base.weight.shape[1]
        kernel = tuple(base.weight.shape[2:])
        (rows, b), (columns, d) = kronecker_factors(out, self.factor), kronecker_factors(inputs, self.factor)
        small = (torch.rand(rows, columns, generator=generator) * 2 - 1) / math.sqrt(columns)
        if rank >= max(b, d) / 2:
            return ModuleState({"lokr_w1": small, "lokr_w2": torch.zeros(b, d, *kernel)}, 1.0)
        first = (torch.rand(b, rank, generator=generator) * 2 - 1) / math.sqrt(rank)
        second = torch.zeros(rank, d * math.prod(kernel))
        return ModuleState({"lokr_w1": small, "lokr_w2_a": first, "lokr_w2_b": second}, alpha)


def kronecker_factors(side: int, most: int | None) -> tuple[int, int]:
    """``most`` and its quotient if it divides ``side``; else the largest divisor up to it and the root, and its own.

    The smaller of the two first, as LyCORIS shares a side out (its ``factorization``).
    """
    if most and side % most == 0:
        return min(most, side // most), max(most, side // most)
    limit = min(most or side, math.isqrt(side))
    first = next(number for number in range(limit, 0, -1) if side % number == 0)
    return first, side // first
