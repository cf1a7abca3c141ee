"""LoHa and LoKr: updates as products of small matrices other than two (LyCORIS, arXiv:2309.14859)."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdlora.adapters.method import LowRank
from sdlora.adapters.parametrizations import Parametrization, Tensors
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.adapters.adapter_layers import AdapterLayer


class HadamardProduct(Parametrization):
    """hada_w1_a, hada_w2_a (out, r), hada_w1_b, hada_w2_b (r, in · kernel): ΔW = (w1_a @ w1_b) ∘ (w2_a @ w2_b).

    Tucker: ..._a (r, out), ..._b (r, in), hada_t1, hada_t2 (r, r, ...). FedPara, arXiv:2108.06098, eq. 2.
    """

    title = "LoHa"
    required = (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",))
    optional = ("hada_t1", "hada_t2")
    ranked, leading = ("hada_w1_b",), ("hada_w1_a",)
    flattens_kernel = True

    def unscaled_delta(self, tensors: Tensors) -> "torch.Tensor":
        import torch

        def factor(number: int) -> "torch.Tensor":
            a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
            core = tensors.get(f"hada_t{number}")
            return a @ b if core is None else torch.einsum("po,pq...,qi->oi...", a, core, b)

        return factor(1) * factor(2)

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        from sdlora.adapters import adapter_layers

        return adapter_layers.LohaConv2d if hasattr(base, "kernel_size") else adapter_layers.LohaLinear


class KroneckerProduct(Parametrization):
    """lokr_w1 (a, c), lokr_w2 (b, d, ...) with out = a · b and in = c · d: ΔW = w1 ⊗ w2.

    Either one may be a product ..._a (., r) @ ..._b (r, .); Tucker: lokr_w2_a (r, b), lokr_w2_b (r, d), lokr_t2
    (r, r, ...). KronA, arXiv:2212.10650.
    """

    title = "LoKr"
    required = (("lokr_w1", "lokr_w1_a+lokr_w1_b"), ("lokr_w2", "lokr_w2_a+lokr_w2_b"))
    optional = ("lokr_t2",)
    ranked, leading = ("lokr_w2_b", "lokr_w1_b"), ("lokr_w1", "lokr_w1_a")
    flattens_kernel = True

    def unscaled_delta(self, tensors: Tensors) -> "torch.Tensor":
        import torch

        first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        if "lokr_w2" in tensors:
            second = tensors["lokr_w2"]
        elif "lokr_t2" in tensors:
            factors = tensors["lokr_w2_a"], tensors["lokr_t2"], tensors["lokr_w2_b"]
            second = torch.einsum("po,pq...,qi->oi...", *factors)
        else:
            second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
        return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        from sdlora.adapters import adapter_layers

        return adapter_layers.LokrConv2d if hasattr(base, "kernel_size") else adapter_layers.LokrLinear


class Loha(LowRank):
    """An elementwise product of two low-rank matrices, of rank r² in all (FedPara, arXiv:2108.06098)."""

    parametrization: ClassVar[Parametrization] = HadamardProduct()

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

    parametrization: ClassVar[Parametrization] = KroneckerProduct()

    method: Literal["lokr"] = "lokr"

    factor: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Largest number of rows and columns of `lokr`'s small matrix, which divide the layer's. More of it makes
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
