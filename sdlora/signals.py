"""Measurements of a run beside its steps: losses on fixed noise, adapter against base, and the size of its updates.

The ratio of both losses on the training images, by timestep, shows what is learnt without the noise of the steps' own
losses (arXiv:2507.02687). These records become values of an event and back. Front ends may import this: no torch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

SMOOTHING = 0.95
"""Weight of the average so far in the moving average by which losses are shown; the rest is the new value's."""
DIGITS = 6
"""Significant digits of a number in an event."""
MOST_PICTURES, MOST_BLOCKS, MOST_TIMES = 10_000, 1000, 1000
"""Records and numbers that are read of an event, which anyone may have written."""
LONGEST_NAME = 300
LEAST_RATIO = 1e-9
"""Smallest ratio of losses that has a logarithm here."""
LEAST_DEVIATION = 0.02
"""Part of a standard deviation of such logarithms that no image stands apart by: among few, some agree by chance."""


@dataclass(frozen=True)
class PictureLoss:
    """Denoising losses of one image, at each of the measured timesteps, of the base and with the adapter."""

    name: str
    base: tuple[float, ...]
    adapted: tuple[float, ...]
    held_out: bool = False
    """Whether it is not trained on."""
    always: bool = True
    """Whether every measurement has it: one of them covers further images."""

    @property
    def ratios(self) -> list[float]:
        """Adapted loss over the base's at each timestep: 1 is as the base."""
        return [adapted / base for base, adapted in zip(self.base, self.adapted, strict=True)]

    @property
    def ratio(self) -> float:
        """Mean of ``ratios``: every timestep counts alike, though losses differ a hundredfold between them."""
        return fmean(self.ratios)


@dataclass(frozen=True)
class BlockUpdate:
    """Updates dW of all layers of one block."""

    block: str
    norm: float
    """Frobenius norm of all of them together."""
    rank: float
    """Mean effective rank of those that are not zero (Roy and Vetterli, 2007); 0 if all are."""


def loss_ratio(pictures: Iterable[PictureLoss], held_out: bool = False) -> float | None:
    """Return the mean ratio of the images that every measurement has, trained or held out; None without any."""
    ratios = [one.ratio for one in pictures if one.always and one.held_out == held_out]
    return fmean(ratios) if ratios else None


def ratios_by_time(pictures: Iterable[PictureLoss], held_out: bool = False) -> list[float]:
    """Return the mean ratio at each timestep of the images that every measurement has; empty without any."""
    ratios = [one.ratios for one in pictures if one.always and one.held_out == held_out]
    return [fmean(column) for column in zip(*ratios, strict=False)]


def odd_ones_first(pictures: Iterable[PictureLoss]) -> list[tuple[PictureLoss, float]]:
    """Return the trained images, each with how far it stands apart from the others, the most distant first.

    That is the distance of the logarithm of its ratio from the mean of all others, in their standard deviations, at the
    timestep at which it is largest: an image of another look or subject differs at some timesteps and not at others
    (docs/decisions/loss-on-fixed-noise.md). It is 0 among fewer than three images.
    """
    trained = [one for one in pictures if not one.held_out]
    logs = [[math.log(max(ratio, LEAST_RATIO)) for ratio in one.ratios] for one in trained]
    apart = [_deviations(column) for column in zip(*logs, strict=False)]
    found = [(one, max(each)) for one, each in zip(trained, zip(*apart, strict=True), strict=True)]
    return sorted(found, key=lambda pair: -pair[1])


def _deviations(values: Sequence[float]) -> list[float]:
    """Return the distance of each value from the mean of all others, in their standard deviations."""
    count, mean = len(values), fmean(values)
    if count < 3:
        return [0.0] * count
    centred = [value - mean for value in values]
    squares = sum(value * value for value in centred)
    found = []
    for value in centred:
        others = -value / (count - 1)
        variance = (squares - value * value - (count - 1) * others * others) / (count - 2)
        found.append(abs(value - others) / (math.sqrt(max(variance, 0.0)) + LEAST_DEVIATION))
    return found


def scalars(pictures: Sequence[PictureLoss], updates: Iterable[BlockUpdate]) -> dict[str, float]:
    """Return the same as numbers by name, for a tracker."""
    ratios = {"train": loss_ratio(pictures), "held_out": loss_ratio(pictures, held_out=True)}
    found = {f"loss_ratio/{name}": ratio for name, ratio in ratios.items() if ratio is not None}
    for update in updates:
        found |= {f"update_norm/{update.block}": update.norm, f"effective_rank/{update.block}": update.rank}
    return found


def as_values(records: Iterable[PictureLoss] | Iterable[BlockUpdate]) -> list[dict[str, Any]]:
    """Return records as an event holds them."""
    return [{name: _rounded(value) for name, value in asdict(record).items()} for record in records]


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(number) for number in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_pictures(values: Any) -> list[PictureLoss]:
    """Read the losses in an event; what is no such record is left out."""
    found = []
    for entry in _records(values, MOST_PICTURES):
        name, base, adapted = entry.get("name"), _numbers(entry.get("base")), _numbers(entry.get("adapted"))
        if isinstance(name, str) and base and adapted and len(base) == len(adapted) and min(base) > 0:
            marks = {mark: entry[mark] for mark in ("held_out", "always") if isinstance(entry.get(mark), bool)}
            found.append(PictureLoss(name[:LONGEST_NAME], base, adapted, **marks))
    return found


def read_updates(values: Any) -> list[BlockUpdate]:
    """Read the updates in an event; what is no such record is left out."""
    found = []
    for entry in _records(values, MOST_BLOCKS):
        block, numbers = entry.get("block"), _numbers([entry.get("norm"), entry.get("rank")])
        if isinstance(block, str) and len(numbers) == 2:
            found.append(BlockUpdate(block[:LONGEST_NAME], *numbers))
    return found


def _records(values: Any, most: int) -> Iterator[dict[str, Any]]:
    return (entry for entry in (values[:most] if isinstance(values, list) else ()) if isinstance(entry, dict))


def _numbers(values: Any) -> tuple[float, ...]:
    """Return a list of numbers, none of them negative; empty for anything else."""
    if not isinstance(values, list) or len(values) > MOST_TIMES:
        return ()
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    fine = plain and all(0 <= value < 1e30 and math.isfinite(value) for value in values)
    return tuple(float(value) for value in values) if fine else ()
