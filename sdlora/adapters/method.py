"""Settings that all methods share, and how a method goes into live models. Torch is imported when one does."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from sdlora.adapters import targets as target_names
from sdlora.adapters.parametrizations import Parametrization
from sdlora.adapters.state import ModuleState
from sdlora.section import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.adapters.trainable import Trainable, TrainableLayers


def validate_targets(targets: str) -> str:
    return ",".join(target_names.split_targets(targets))


def _validate_ranks(text: str) -> str:
    for pattern, rank in target_names.parse_pattern_values(text).items():
        if not 0 <= rank <= 1024 or rank != int(rank):
            raise ValueError(f"{pattern}={rank:g}: a rank is a whole number from 0 to 1024")
    return text


class Method(Section):
    """A training method: its settings, and what it trains in live models."""

    parametrization: ClassVar["Parametrization | None"] = None
    """Meaning of the tensors that only this method has; None: it trains and exports tensors of others."""

    method: str

    targets: Annotated[str, AfterValidator(validate_targets)] = "cross-attention"
    """Layers to adapt: `cross-attention`, `attention`, `attention+ff`, `linear`, `linear+conv`, `ia3`, or module paths
    such as `unet.up_blocks` or `*.attn2.to_[kv]`; commas join several."""

    text_encoder: bool = True
    """Adapt the text encoders too."""

    init: Path | None = None
    """Adapter file to continue from, of the same method, layers and rank as set here."""

    @property
    def input_dropout(self) -> float:
        """Share of a layer's inputs that the update does not see, while training."""
        return 0.0

    @abstractmethod
    def attach(self, models: "Mapping[str, nn.Module]", name: str, seed: int) -> "Trainable":
        """Put what trains into ``models`` (component -> module) as adapter ``name``.

        Everything else in ``models`` is frozen. Random numbers come from ``seed`` alone, and no global generator moves.
        Raises ConfigError if the targets match no layer, naming near ones, or ``name`` is taken.
        """


class AddedLayers(Method):
    """Methods that add layers beside frozen weights, which start as if they were not there."""

    @abstractmethod
    def init_state(self, path: str, base: "nn.Module", generator: "torch.Generator") -> "ModuleState | None":
        """The tensors with which the layer ``base`` at ``path`` starts: its output stays what it was. None: no adapter.

        Random numbers come from ``generator`` alone.
        """

    def check_layers(self, paths: list[str]) -> None:
        """Raises ConfigError where settings by path match none of the layers that are adapted."""

    def lr_multiplier(self, tensor: str) -> float:
        """Return what the learning rate of a layer's tensor of this name is multiplied by."""
        return 1.0

    def attach(self, models: "Mapping[str, nn.Module]", name: str, seed: int) -> "TrainableLayers":
        """Attach the method's layers as ``Method.attach`` says; their tensors are float32 whatever the base's type."""
        import torch

        from sdlora.adapters.attach import attach_modules
        from sdlora.adapters.trainable import TrainableLayers

        paths = target_names.select_layers(models, self.targets, self.text_encoder)
        self.check_layers(paths)
        bases = dict(target_names.adaptable_layers(models))
        generator = torch.Generator().manual_seed(seed)
        fresh = {path: self.init_state(path, bases[path], generator) for path in paths}
        for model in models.values():
            model.requires_grad_(False)
        attach_modules(models, {path: state for path, state in fresh.items() if state}, name, self.input_dropout)
        trainable = TrainableLayers(models, name, self.lr_multiplier)
        for parameter in trainable.parameters:
            parameter.requires_grad_(True)
        return trainable


class LowRank(AddedLayers):
    """Methods with a rank."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update: a higher one has more capacity, and makes a larger file. 4 to 32 is usual."""

    alpha: Annotated[float, Field(gt=0, le=65504)] | None = None
    """Scale of the update, as alpha / rank. Equal to the rank, for a scale of 1, if not set."""

    ranks: Annotated[str, AfterValidator(_validate_ranks)] = ""
    """Other ranks for some layers: `unet.mid_block=4, *.attn1.*=0`; the longest matching name counts, and 0 leaves a
    layer out. Their alphas keep the ratio of alpha and rank."""

    def check_layers(self, paths: list[str]) -> None:
        target_names.require_matches("adapter.ranks", target_names.parse_pattern_values(self.ranks), paths)

    def rank_of(self, path: str) -> tuple[int, float]:
        """Rank and alpha of a layer."""
        rank = int(target_names.lookup_pattern(path, target_names.parse_pattern_values(self.ranks), self.rank))
        return rank, rank * (1.0 if self.alpha is None else self.alpha / self.rank)

    def init_state(self, path: str, base: "nn.Module", generator: "torch.Generator") -> "ModuleState | None":
        rank, alpha = self.rank_of(path)
        return self.init_low_rank(base, rank, alpha, generator) if rank else None

    @abstractmethod
    def init_low_rank(self, base: "nn.Module", rank: int, alpha: float, generator: "torch.Generator") -> "ModuleState":
        """``init_state`` for a layer whose rank is known."""
