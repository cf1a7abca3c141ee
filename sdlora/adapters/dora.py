"""DoRA: weight-decomposed low-rank adaptation (arXiv:2402.09353)."""

from typing import TYPE_CHECKING, Any, Literal

from sdlora.adapters.base import ModuleState
from sdlora.adapters.lora import Lora

if TYPE_CHECKING:
    import torch


class Dora(Lora):
    """A LoRA gives the direction of each output's weights, a learnt magnitude their length."""

    method: Literal["dora"] = "dora"  # type: ignore[assignment]

    def init_low_rank(self, base: Any, rank: int, alpha: float, generator: "torch.Generator") -> ModuleState:
        """As LoRA; the magnitudes are the lengths that the base's weights have."""
        from sdlora.adapters.hosts import weight_norm

        low = super().init_low_rank(base, rank, alpha, generator)
        device = base.weight.device
        down, up = (low.tensors[name].to(device) for name in ("down", "up"))
        return ModuleState({**low.tensors, "magnitude": weight_norm(base, down, up, alpha / rank)}, alpha)
