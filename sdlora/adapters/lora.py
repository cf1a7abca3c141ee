"""LoRA: low-rank adaptation (arXiv:2106.09685)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdlora.adapters.compatibility import low_rank_shapes
from sdlora.adapters.method import LowRank
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch
    from torch import nn
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Lora(LowRank):
    """Low-rank updates beside frozen weights: W + alpha / rank · up @ down."""

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

    method: Literal["dora"] = "dora"  # type: ignore[assignment]

    def init_low_rank(self, base: Any, rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """As LoRA; the magnitudes are the lengths that the base's weights have."""
        from sdlora.adapters.adapter_layers import weight_norm

        low = super().init_low_rank(base, rank, alpha, generator)
        device = base.weight.device
        down, up = (low.tensors[name].to(device) for name in ("down", "up"))
        return ModuleState({**low.tensors, "magnitude": weight_norm(base, down, up, alpha / rank)}, alpha)
