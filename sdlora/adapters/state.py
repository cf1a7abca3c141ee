"""Neutral form of an adapter, apart from any method's mathematics, any base model and any file format."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sdlora.adapters import parametrizations

if TYPE_CHECKING:
    import torch

Scale = float | Mapping[str, float]
"""One number, or numbers by module: keys are paths (``text_encoder.text_model.encoder.layers.1``) or globs
(``*.attn2.*``), the longest matching key counts, ``*`` is the rest, and what no key matches has 1."""


@dataclass(frozen=True)
class ModuleState:
    """One adapted layer's tensors under the neutral names of its method (``parametrizations.py``), and its alpha."""

    tensors: Mapping[str, "torch.Tensor"]
    alpha: float = 1.0
    """Numerator of ΔW's scale alpha / rank; it means nothing without a rank."""

    @property
    def method(self) -> str:
        return parametrizations.method_of(self.tensors)

    @property
    def parametrization(self) -> parametrizations.Parametrization:
        return parametrizations.parametrization_of(self.tensors)

    @property
    def rank(self) -> int | None:
        """Width of the update; None for a method that has none."""
        return parametrizations.rank(self.tensors)

    @property
    def scale(self) -> float:
        """alpha / rank, or 1 without a rank."""
        return self.alpha / self.rank if self.rank else 1.0

    def delta_weight(self, weight: "torch.Tensor") -> "torch.Tensor":
        """ΔW, float32, of the shape of the base's ``weight`` (out, in, ...), at a scale of 1."""
        own = {name: tensor.to(weight.device).float() for name, tensor in self.tensors.items()}
        return self.parametrization.delta_weight(own, self.scale, weight.float())

    def with_alpha(self, alpha: float) -> "ModuleState":
        """The same update with another ``alpha``, not 0: a tensor takes up the difference."""
        if not self.rank or alpha == self.alpha:
            return replace(self, alpha=alpha)
        return self.scaled_by(self.alpha / alpha, alpha)

    def scaled_by(self, factor: float, alpha: float | None = None) -> "ModuleState":
        """``factor`` times the update; of DoRA the low-rank part alone."""
        name = next(name for name in self.parametrization.leading if name in self.tensors)
        own = self.alpha if alpha is None else alpha
        return ModuleState({**self.tensors, name: self.tensors[name] * factor}, own)


@dataclass(frozen=True)
class AdapterState:
    """A whole adapter, neutral between live modules and files.

    ``modules`` maps ``component.path`` to a layer's state. Components are the family's; paths are diffusers' and
    transformers' *classic* names (``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``), whatever the
    installed version calls its modules. ``metadata`` is the file's header: strings only.
    """

    method: str
    """Method of most layers: some tools' files mix them."""
    modules: Mapping[str, ModuleState]
    metadata: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, "torch.Tensor"]] = field(default_factory=dict)
    """Vectors (n, width) of taught words, by their placeholder and text encoder."""


def build_adapter_state(modules: Mapping[str, ModuleState], metadata: Mapping[str, str] | None = None) -> AdapterState:
    """Build an adapter of ``modules``, called after the method that most of them have."""
    from sdlora.adapters import DEFAULT_METHOD

    counts = Counter(module.method for module in modules.values())
    return AdapterState(counts.most_common(1)[0][0] if counts else DEFAULT_METHOD, modules, dict(metadata or {}))
