"""Memory savings: changes of settings with which a run needs less memory. Those that leave its result alone come first.

Nothing here imports torch: a callable says what a config needs, and the savings are a table.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from sdlora.config import TrainConfig
from sdlora.formatting import format_bytes
from sdlora.training.settings import MOST_ACCUMULATED

WORTH = 0.01
"""Smallest share of memory for which a saving is applied."""
RESERVE = 0.1
"""Share of a run's memory, without its weights, to keep free: kernels' workspaces, an allocator's rounding."""

Changes = Mapping[str, Any]
"""Values of settings by dotted name."""


class MemorySaving(NamedTuple):
    """One way to need less memory."""

    settings: tuple[str, ...]
    """Settings that it changes; it is not applied where the user has set one of them."""
    changes: Callable[[TrainConfig, bool], Changes]
    """Its changes to a config, for a card or not; none if it is applied already, or does not apply."""
    costs: str
    """Its price, in a few words."""


def _offload(config: TrainConfig, on_card: bool) -> Changes:
    return {"train.offload": True} if on_card and not config.train.offload else {}


def _halve(config: TrainConfig, on_card: bool) -> Changes:
    """Split the batch in two halves, one of an odd size in single images; a step sees as many images as before."""
    batch, added = config.train.batch_size, config.train.gradient_accumulation
    parts = 2 if batch % 2 == 0 else batch
    if batch == 1 or added * parts > MOST_ACCUMULATED:
        return {}
    return {"train.batch_size": batch // parts, "train.gradient_accumulation": added * parts}


def _checkpointing(config: TrainConfig, on_card: bool) -> Changes:
    return {} if config.train.gradient_checkpointing else {"train.gradient_checkpointing": True}


def _8bit_optimizer(config: TrainConfig, on_card: bool) -> Changes:
    possible = config.optimizer.name == "adamw" and find_spec("bitsandbytes") is not None
    return {"optimizer.name": "adamw8bit"} if possible else {}


def _int8(config: TrainConfig, on_card: bool) -> Changes:
    return {} if config.model.quantize is not None else {"model.quantize": "int8"}


def _nf4(config: TrainConfig, on_card: bool) -> Changes:
    possible = config.model.quantize != "nf4" and find_spec("bitsandbytes") is not None
    return {"model.quantize": "nf4"} if possible else {}


MEMORY_SAVINGS: tuple[MemorySaving, ...] = (
    MemorySaving(("train.offload",), _offload, "a moment at each preview"),
    MemorySaving(("train.batch_size", "train.gradient_accumulation"), _halve, "less work at once for the device"),
    MemorySaving(("train.gradient_checkpointing",), _checkpointing, "about a third more time a step"),
    MemorySaving(("optimizer.name",), _8bit_optimizer, "the optimizer's moments are rounded"),
    MemorySaving(("model.quantize",), _int8, "the base is rounded, and unpacked at every use"),
    MemorySaving(("model.quantize",), _nf4, "the base is rounded more"),
)
"""All savings in the order in which they are applied, each as often as possible.

Reasons: docs/decisions/order-of-memory-savings.md."""


class AppliedSaving(NamedTuple):
    """A saving that was applied, or could be: its changes, and the bytes that the run needs with it."""

    changes: Changes
    needs: int
    costs: str = ""


@dataclass(frozen=True)
class MemoryFit:
    """Outcome of fitting a config into a budget of memory."""

    config: TrainConfig
    needs: int
    """Bytes, counted."""
    budget: int
    before: int
    """Bytes that it needed without savings."""
    applied: tuple[AppliedSaving, ...]
    kept: tuple[str, ...]
    """Settings of the user that would have helped, and were left alone."""

    @property
    def fits(self) -> bool:
        return self.needs <= self.budget

    @property
    def changes(self) -> dict[str, Any]:
        """Return the final values of all settings that were changed."""
        return {name: value for saving in self.applied for name, value in saving.changes.items()}


def with_settings(config: TrainConfig, changes: Changes) -> TrainConfig:
    """Return ``config`` with other values of some settings."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        own = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: own})
    return config


def remaining_savings(
    config: TrainConfig, needs: Callable[[TrainConfig], int], on_card: bool, given: Collection[str] = ()
) -> Iterator[AppliedSaving]:
    """Yield each saving that is worth while, on top of those before it; settings that are ``given`` stay."""
    now = needs(config)
    for saving in MEMORY_SAVINGS:
        if set(saving.settings) & set(given):
            continue
        while changes := saving.changes(config, on_card):
            after = needs(with_settings(config, changes))
            if now - after < WORTH * now:
                break
            config, now = with_settings(config, changes), after
            yield AppliedSaving(changes, after, saving.costs)


def apply_until_fits(
    config: TrainConfig, needs: Callable[[TrainConfig], int], budget: int, on_card: bool, given: Collection[str] = ()
) -> MemoryFit:
    """Apply one saving after the other until ``config`` fits into ``budget`` bytes, or none is left.

    ``needs`` returns the bytes that a config takes. Settings that are ``given`` by the user stay.
    """
    before = needs(config)
    applied: list[AppliedSaving] = []
    if before > budget:
        for step in remaining_savings(config, needs, on_card, given):
            applied.append(step)
            if step.needs <= budget:
                break
    now = applied[-1].needs if applied else before
    after = with_settings(config, {name: value for step in applied for name, value in step.changes.items()})
    left = (saving for saving in MEMORY_SAVINGS if saving.changes(after, on_card))
    helpful = {name for saving in left for name in saving.settings if name in given}
    return MemoryFit(after, now, budget, before, tuple(applied), tuple(sorted(helpful)) if now > budget else ())


def next_saving(config: TrainConfig, on_card: bool) -> Changes:
    """Return the changes of the first saving that ``config`` lacks; none if it has all."""
    return next((changes for saving in MEMORY_SAVINGS if (changes := saving.changes(config, on_card))), {})


def as_flags(changes: Changes) -> str:
    """Return ``train.batch_size = 1 and train.gradient_accumulation = 4``."""
    return " and ".join(f"{name} = {str(value).lower()}" for name, value in changes.items())


def describe_fit(fit: MemoryFit, requested: str) -> str:
    """Return a sentence on what was chosen: ``8GB: gradient checkpointing, batch 1 x 4; about 3.10 GiB, counted``."""
    size = f"{format_bytes(fit.needs)}, counted"
    if not fit.applied:
        return f"{requested}: nothing was changed to fit; it takes about {size}"
    changes = "; ".join(map(describe_changes, _merged_changes(fit)))
    return f"{requested}: {changes}; about {size}, instead of {format_bytes(fit.before)}"


def _merged_changes(fit: MemoryFit) -> list[Changes]:
    """Return the changes saving by saving, each setting with its final value."""
    found: dict[str, dict[str, Any]] = {}
    for step in fit.applied:
        found.setdefault(next(iter(step.changes)), {}).update(step.changes)
    return list(found.values())


def describe_changes(changes: Changes) -> str:
    """Return what a saving changes, in a few words."""
    if "train.batch_size" in changes:
        return f"batch {changes['train.batch_size']} x {changes['train.gradient_accumulation']}"
    name, value = next(iter(changes.items()))
    words = {
        "train.offload": "parts that do not train wait in main memory",
        "train.gradient_checkpointing": "gradient checkpointing",
        "optimizer.name": "8-bit optimizer",
    }
    return words.get(name, f"base in {value}")


def refusal(fit: MemoryFit, requested: str) -> str:
    """Return a sentence on why nothing fits, with what is left to the user."""
    least = format_bytes(fit.needs)
    by_hand = f"; set by hand, and left alone: {', '.join(fit.kept)}" if fit.kept else ""
    return (
        f"train.memory = {requested}: this run takes about {least} with every memory saving applied{by_hand}; "
        "take a lower data.resolution or adapter.rank, class pictures of your own (prior.folder), or more memory"
    )
