"""An adapter at another rank."""

from collections.abc import Mapping
from typing import NamedTuple

from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.editing.low_rank import Cut, kernel_of, layer_factors, weights_for
from sdlora.events import OnProgress, unwatched


class Resized(NamedTuple):
    """A LoRA made of another adapter, and for each layer what became of it."""

    state: AdapterState
    layers: "Mapping[str, KeptEnergy]"

    @property
    def kept(self) -> float:
        """The share of all layers' squared Frobenius norms that is kept: 0 to 1."""
        total = sum(layer.square for layer in self.layers.values())
        return sum(layer.square * layer.energy for layer in self.layers.values()) / total if total else 1.0


class KeptEnergy(NamedTuple):
    """What is kept of one layer."""

    before: int | None
    """The rank that it had, if it had one."""
    rank: int
    energy: float
    """Share of its squared Frobenius norm."""
    square: float
    """That norm, squared, before."""


def resize(state: AdapterState, cut: Cut, base: str = "", on_progress: OnProgress = unwatched) -> Resized:
    """``state`` as a LoRA, each layer cut by its singular values to a rank, or to the share of energy that is kept.

    Any method can be made into a LoRA so; DoRA and (IA)³ need the ``base``. Layer by layer; ``on_progress`` is told of
    each. Raises ConfigError, MismatchError, ModelError.
    """
    cut.check()
    weights = weights_for(base, state)
    made: dict[str, ModuleState] = {}
    layers: dict[str, KeptEnergy] = {}
    for number, (path, module) in enumerate(state.modules.items()):
        weight = weights(path)
        found = layer_factors(path, module, weight)
        count = cut.parts(found.values)
        kernel = kernel_of(path, module) if weight is None else tuple(weight.shape[2:])
        made[path] = found.module(count, kernel)
        layers[path] = KeptEnergy(module.rank, count, found.kept(count), float(found.values.square().sum()))
        on_progress(number + 1, len(state.modules))
    return Resized(build_adapter_state(made, state.metadata), layers)
