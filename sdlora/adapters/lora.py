"""LoRA: low-rank adaptation (arXiv:2106.09685). Settings here; PEFT does the layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from sdlora.adapters import targets as target_names
from sdlora.section import Section

if TYPE_CHECKING:
    from torch import nn


def _known(targets: str) -> str:
    return ",".join(target_names.parts(targets))


class Lora(Section):
    """Low-rank updates beside frozen weights: W + alpha / rank · up @ down."""

    method: Literal["lora"] = "lora"

    targets: Annotated[str, AfterValidator(_known)] = "cross-attention"
    """Which layers are adapted: `cross-attention`, `attention`, `attention+ff`, `linear`, `linear+conv`, or module
    paths such as `unet.up_blocks` or `*.attn2.to_[kv]`; commas join several."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Width of the update: more can hold more, and makes a larger file. 4 to 32 is usual."""

    alpha: Annotated[float, Field(gt=0, le=65504)] | None = None
    """The update is scaled by alpha / rank. Equal to the rank, for a scale of 1, if not set."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each adapted layer's inputs that the update does not see, while training."""

    text_encoder: bool = True
    """Adapt the text encoders too."""

    init: Path | None = None
    """Adapter file to continue from, with the same layers and rank as set here."""

    def attach(self, models: Mapping[str, "nn.Module"], name: str, seed: int) -> list["nn.Parameter"]:
        """Add fresh LoRA layers called ``name`` to ``models`` (component -> module); return what trains.

        Everything else in ``models`` is frozen. ``down`` is Gaussian with a standard deviation of
        1 / rank, as in diffusers' training scripts, so that their learning rates carry over; ``up`` is
        zero, so that every output stays what it was. Both are float32 whatever the base's type. The
        numbers come from ``seed`` alone, and no global generator moves.
        Raises ConfigError if the targets match no layer, naming near ones, or ``name`` is taken.
        """
        import torch

        from sdlora.adapters import live

        paths = target_names.select(models, self.targets, self.text_encoder)
        alpha = self.rank * 1.0 if self.alpha is None else self.alpha
        for model in models.values():
            model.requires_grad_(False)
        live.add_layers(models, dict.fromkeys(paths, (self.rank, alpha)), name, self.dropout)
        generator = torch.Generator().manual_seed(seed)
        for _, layer in live.layers(models, name):
            down, up = layer.tensors["down"], layer.tensors["up"]
            layer.set(down=torch.randn(down.shape, generator=generator) / self.rank, up=torch.zeros(up.shape))
        parameters = live.parameters(models, name)
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters
