"""LoRA: low-rank adaptation (arXiv:2106.09685), and DoRA (arXiv:2402.09353)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdlora.adapters.compatibility import low_rank_shapes
from sdlora.adapters.method import LowRank
from sdlora.adapters.parametrizations import TINY, Parametrization, Tensors
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.adapters.adapter_layers import AdapterLayer


class LowRankProduct(Parametrization):
    """down (r, in, ...), up (out, r): ΔW = up @ down. With mid (r, r, ...), a Tucker form, down is (r, in).

    arXiv:2106.09685, section 4.1; LoCon and its Tucker form: LyCORIS, arXiv:2309.14859, appendix A.
    """

    title = "LoRA"
    required: ClassVar[tuple[tuple[str, ...], ...]] = (("down",), ("up",))
    optional, ranked, leading = ("mid",), ("down",), ("up",)

    def unscaled_delta(self, tensors: Tensors) -> "torch.Tensor":
        import torch

        down, up = tensors["down"], tensors["up"].flatten(1)
        if "mid" in tensors:
            return torch.einsum("op,pq...,qi->oi...", up, tensors["mid"], down.flatten(1))
        return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])

    def delta_square(self, tensors: Tensors) -> float:
        """‖UD‖² = Σ (UᵀU ∘ DDᵀ), at most rank x rank: the product is not formed."""
        if "mid" in tensors:
            return super().delta_square(tensors)
        down, up = (tensors[name].double().flatten(1) for name in ("down", "up"))
        return float(((up.T @ up) * (down @ down.T)).sum())

    def low_rank_factors(self, tensors: Tensors) -> "tuple[torch.Tensor, torch.Tensor] | None":
        import torch

        up, down = tensors["up"].flatten(1), tensors["down"]
        if "mid" in tensors:
            down = torch.einsum("pq...,qi->pi...", tensors["mid"], down.flatten(1))
        return up, down.flatten(1)

    def layer_class(self, base: "nn.Module") -> "type[AdapterLayer]":
        from sdlora.adapters.lora_layer import LoraAdapterLayer

        return LoraAdapterLayer


class DoraProduct(LowRankProduct):
    """A LoRA's tensors, and magnitude (out,) or, in some files, input_magnitude (in,). arXiv:2402.09353, eq. 5."""

    title = "DoRA"
    required = (*LowRankProduct.required, ("magnitude", "input_magnitude"))
    beside = ("magnitude", "input_magnitude")
    needs_base = True

    def delta_weight(self, tensors: Tensors, scale: float, weight: "torch.Tensor") -> "torch.Tensor":
        axis = 0 if "magnitude" in tensors else 1
        changed = weight + super().delta_weight(tensors, scale, weight)
        view = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        others = [dim for dim in range(weight.ndim) if dim != axis]
        norm = changed.square().sum(others, keepdim=True).clamp(min=TINY).sqrt()
        return tensors["input_magnitude" if axis else "magnitude"].view(view) * changed / norm - weight

    def low_rank_factors(self, tensors: Tensors) -> None:
        return None


class Lora(LowRank):
    """Low-rank updates beside frozen weights: W + alpha / rank · up @ down."""

    parametrization: ClassVar[Parametrization] = LowRankProduct()

    method: Literal["lora"] = "lora"
    """Kind of adapter: `lora`; `dora` (learns directions as LoRA does, and lengths separately); `loha` and `lokr`
    (products with higher rank for fewer numbers); `ia3` (one scale per channel, the smallest files)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each adapted layer's inputs that is hidden from the update during training."""

    lora_plus_ratio: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Learning rate of `up` over that of `down`, which is `train.learning_rate` (LoRA+, arXiv:2402.12354, where it is
    about 16 for language models)."""

    @property
    def input_dropout(self) -> float:
        return self.dropout

    def lr_multiplier(self, tensor: str) -> float:
        return self.lora_plus_ratio if tensor == "up" else 1.0

    def init_low_rank(self, base: "nn.Module", rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """``down`` is Gaussian with a standard deviation of 1 / rank, as in diffusers' training scripts, so that
        their learning rates carry over; ``up`` is zero.
        """
        import torch

        down, up = low_rank_shapes(base, rank)
        return ModuleState({"down": torch.randn(down, generator=generator) / rank, "up": torch.zeros(up)}, alpha)


class Dora(Lora):
    """A LoRA gives the direction of each output's weights, a learnt magnitude their length."""

    parametrization: ClassVar[Parametrization] = DoraProduct()

    method: Literal["dora"] = "dora"  # type: ignore[assignment]

    def init_low_rank(self, base: Any, rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """Start as LoRA does; the magnitudes are the lengths that the base's weights have."""
        from sdlora.adapters.adapter_layers import weight_norm

        low = super().init_low_rank(base, rank, alpha, generator)
        device = base.weight.device
        down, up = (low.tensors[name].to(device) for name in ("down", "up"))
        return ModuleState({**low.tensors, "magnitude": weight_norm(base, down, up, alpha / rank)}, alpha)
