"""What an adapter is, apart from any method's mathematics, any base model and any file format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

Scale = float | Mapping[str, float]
"""One number, or numbers by module: keys are paths (``text_encoder``, ``unet.down_blocks.1``) or globs
(``*.attn2.*``), the longest matching key counts, ``*`` is the rest, and what no key matches has 1."""


@dataclass(frozen=True)
class ModuleState:
    """One adapted layer's tensors under the neutral names of its method, and its alpha.

    For ``lora``: ``down`` (rank, in, ...) and ``up`` (out, rank, ...), so that
    ΔW = alpha / rank · up @ down (LoRA, arXiv:2106.09685, section 4.1).
    """

    tensors: Mapping[str, "torch.Tensor"]
    alpha: float

    @property
    def rank(self) -> int:
        """Width of the update, between ``down`` and ``up``."""
        return int(self.tensors["down"].shape[0])


@dataclass(frozen=True)
class AdapterState:
    """A whole adapter, neutral between live modules and files.

    ``modules`` maps ``component.path`` to a layer's state. Components are ``unet``, ``text_encoder``
    and ``text_encoder_2``; paths are diffusers' and transformers' *classic* names
    (``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``), whatever the installed version
    calls its modules. ``metadata`` is the file's header: strings only.
    """

    method: str
    modules: Mapping[str, ModuleState]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Method(Protocol):
    """An adapter method: a config section that can put itself into models and read itself back."""

    @property
    def method(self) -> str:
        """Its name in ``METHODS``."""
        ...

    def attach(self, models: Mapping[str, "nn.Module"], name: str, seed: int) -> list["torch.nn.Parameter"]:
        """Add fresh adapter layers called ``name`` to ``models`` (component -> module); return what trains.

        The models' own weights are frozen. A fresh adapter leaves every output unchanged.
        Raises ConfigError if the targets match no module, naming near ones.
        """
        ...
