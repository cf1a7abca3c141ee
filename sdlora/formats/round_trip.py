"""Round-trip check: read a file just written back, and compare its updates."""

import math
from typing import NamedTuple

from sdlora.adapters.state import AdapterState
from sdlora.errors import FormatError, NonFiniteError
from sdlora.formats.checked_tensors import AdapterContents

BOUND = 1e-5
"""Largest error of an update in float32, relative to its largest number: some roundings of its factors. In 16 bits the
error depends on the numbers: it is reported, not judged."""


class RoundTripReport(NamedTuple):
    """Result of reading back a file just written."""

    layers: int
    keys: int
    """Number of tensors, all of which were understood."""
    error: float
    """Largest difference between a number of ΔW before and after."""
    largest: float
    """Largest number of ΔW itself."""
    advice: str = ""
    """Advice to a person who takes the file to another tool."""

    def __str__(self) -> str:
        found = f"{self.layers} layers, {self.keys} tensors read back"
        figures = f"max |ΔW| error {self.error:.2g} of {self.largest:.2g}"
        return "; ".join([found, figures, *([self.advice] if self.advice else [])])


def check_round_trip(state: AdapterState, written: AdapterContents, dtype: str) -> RoundTripReport:
    """Compare the ``written`` file with ``state``, a layer at a time.

    Raises FormatError if a layer is missing, a key was not understood, or an update in fp32 differs: the file is then
    not kept. Raises NonFiniteError for an update that is not finite.
    """
    found = written.state.modules
    if written.unknown or found.keys() != state.modules.keys():
        odd = next(iter(written.unknown), None) or next(iter(found.keys() ^ state.modules.keys()))
        raise FormatError(f"{odd}: what was written does not read back (a bug); nothing is kept")
    error = largest = 0.0
    for path, module in state.modules.items():
        both = (own.parametrization.comparable(own.tensors, own.scale) for own in (module, found[path]))
        for one, other in zip(*both, strict=True):
            off, size = float((one - other).abs().max()), float(one.abs().max())
            if not math.isfinite(size):
                raise NonFiniteError(f"{path}: its update is not finite; nothing is kept")
            if dtype == "fp32" and not off <= BOUND * size:
                raise FormatError(f"{path}: its update reads back as another (a bug), by {off:.2g}; nothing is kept")
            error, largest = max(error, off), max(largest, size)
    keys = sum(len(module.tensors) for module in found.values())
    return RoundTripReport(len(found), keys, error, largest)
