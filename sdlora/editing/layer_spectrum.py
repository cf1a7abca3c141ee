"""What is in an adapter, layer by layer: norms, singular values, how many directions it really uses."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from sdlora.adapters.state import AdapterState
from sdlora.editing.low_rank import layer_factors, weights_for
from sdlora.events import OnProgress, unwatched

SHARE = 0.95
"""Of the energy (squared Frobenius norm): the rank that holds so much of it is told."""


class LayerSpectrum(NamedTuple):
    """One layer's update."""

    path: str
    method: str
    rank: int | None
    alpha: float
    norm: float
    """Frobenius norm of ΔW."""
    values: tuple[float, ...]
    """Its singular values, the largest first, as many as the rank, or 64 at most."""
    effective: float
    """exp of the entropy of the singular values as shares (Roy and Vetterli, 2007): 1 to the rank."""
    needed: int
    """The rank that holds 95 % of the energy."""


MOST = 64


def spectrum(state: AdapterState, base: str = "", on_progress: OnProgress = unwatched) -> list[LayerSpectrum]:
    """Every layer of ``state``, in its order. DoRA and (IA)³ need the ``base``. Raises ConfigError, ModelError."""
    weights = weights_for(base, state)
    layers = []
    for number, (path, module) in enumerate(state.modules.items()):
        values = layer_factors(path, module, weights(path)).values
        shares = values / values.sum() if float(values.sum()) else values.new_tensor([1.0])
        shares = shares[shares > 0]
        energies = values.square().cumsum(0)
        needed = int((energies < SHARE * energies[-1]).sum()) + 1
        kept = tuple(float(value) for value in values[: module.rank or MOST][:MOST])
        effective = float(torch.exp(-(shares * shares.log()).sum()))
        layers.append(
            LayerSpectrum(
                path, module.method, module.rank, module.alpha, float(energies[-1].sqrt()), kept, effective, needed
            )
        )
        on_progress(number + 1, len(state.modules))
    return layers


def spectrum_table(layers: list[LayerSpectrum]) -> Iterator[str]:
    """The layers as lines of text, the largest norm first."""
    yield f"{'norm':>9} {'rank':>5} {'effective':>9} {'95 %':>5}  layer"
    for layer in sorted(layers, key=lambda one: -one.norm):
        rank = "-" if layer.rank is None else str(layer.rank)
        yield f"{layer.norm:9.4g} {rank:>5} {layer.effective:9.1f} {layer.needed:5}  {layer.path}"


def save_spectrum_plot(layers: list[LayerSpectrum], path: Path) -> Path:
    """Draw each layer's norm as a bar in the model's order, and its singular values below; a PNG file at ``path``."""
    from sdlora.editing.spectrum_plot import plot_spectrum
    from sdlora.filesystem.writing import write_atomic

    write_atomic(path, lambda place: plot_spectrum(layers).save(place, "PNG"))
    return path
