"""Change the rank of an adapter."""

from typing import NamedTuple

from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.editing.low_rank import Cut, kernel_of, layer_factors, weights_for
from sdlora.events import OnProgress, unwatched


class Resized(NamedTuple):
    """A LoRA made from another adapter, and the share of all layers' squared Frobenius norms that it kept: 0 to 1."""

    state: AdapterState
    kept: float


def resize(state: AdapterState, cut: Cut, base: str = "", on_progress: OnProgress = unwatched) -> Resized:
    """Return ``state`` as a LoRA, each layer truncated by its singular values to a rank, or to a share of energy.

    Any method becomes a LoRA; DoRA and (IA)³ need the ``base``. ``on_progress`` counts layers. Raises ConfigError,
    MismatchError, ModelError.
    """
    cut.check()
    weights = weights_for(base, state)
    made: dict[str, ModuleState] = {}
    total = kept = 0.0
    for number, (path, module) in enumerate(state.modules.items()):
        weight = weights(path)
        found = layer_factors(path, module, weight)
        count = cut.parts(found.values)
        kernel = kernel_of(path, module) if weight is None else tuple(weight.shape[2:])
        made[path] = found.module(count, kernel)
        square = float(found.values.square().sum())
        total, kept = total + square, kept + square * found.kept(count)
        on_progress(number + 1, len(state.modules))
    return Resized(build_adapter_state(made, state.metadata), kept / total if total else 1.0)
