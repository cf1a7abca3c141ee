"""The rungs that a run may climb to need less memory, in their order: what changes nothing that is learnt comes first.

Nothing here imports torch: what a config needs is told by a callable, and which rungs follow is a table.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from sdlora.config import TrainConfig
from sdlora.formatting import format_bytes
from sdlora.training.settings import MOST_ACCUMULATED

WORTH = 0.01
"""A rung that saves a smaller share than this is passed over."""
RESERVE = 0.1
"""Of what a run takes beside its weights, so much more is left free: kernels' workspaces, an allocator's rounding."""

Changes = Mapping[str, Any]
"""Settings by their dotted names."""


class MemorySaving(NamedTuple):
    """One way to need less memory."""

    settings: tuple[str, ...]
    """What it changes: it is left alone where a person has set one of these."""
    take: Callable[[TrainConfig, bool], Changes]
    """What it changes in a config, for a card or not; nothing where it is taken already, or cannot be."""
    costs: str


def _offload(config: TrainConfig, on_card: bool) -> Changes:
    return {"train.offload": True} if on_card and not config.train.offload else {}


def _halve(config: TrainConfig, on_card: bool) -> Changes:
    """A batch in two halves, or of a size that has none picture by picture, as many pictures a step as before."""
    batch, added = config.train.batch_size, config.train.gradient_accumulation
    parts = 2 if batch % 2 == 0 else batch
    if batch == 1 or added * parts > MOST_ACCUMULATED:
        return {}
    return {"train.batch_size": batch // parts, "train.gradient_accumulation": added * parts}


def _twice(config: TrainConfig, on_card: bool) -> Changes:
    return {} if config.train.gradient_checkpointing else {"train.gradient_checkpointing": True}


def _few_moments(config: TrainConfig, on_card: bool) -> Changes:
    able = config.optimizer.name == "adamw" and find_spec("bitsandbytes") is not None
    return {"optimizer.name": "adamw8bit"} if able else {}


def _int8(config: TrainConfig, on_card: bool) -> Changes:
    return {} if config.model.quantize is not None else {"model.quantize": "int8"}


def _nf4(config: TrainConfig, on_card: bool) -> Changes:
    able = config.model.quantize != "nf4" and find_spec("bitsandbytes") is not None
    return {"model.quantize": "nf4"} if able else {}


MEMORY_SAVINGS: tuple[MemorySaving, ...] = (
    MemorySaving(("train.offload",), _offload, "a moment at each preview"),
    MemorySaving(("train.batch_size", "train.gradient_accumulation"), _halve, "less work at once for the device"),
    MemorySaving(("train.gradient_checkpointing",), _twice, "about a third more time a step"),
    MemorySaving(("optimizer.name",), _few_moments, "the optimizer's moments are rounded"),
    MemorySaving(("model.quantize",), _int8, "the base is rounded, and unpacked at every use"),
    MemorySaving(("model.quantize",), _nf4, "the base is rounded more"),
)
"""In the order in which they are taken, each as often as it can be; why: docs/decisions/order-of-memory-savings.md."""


class AppliedSaving(NamedTuple):
    """A rung that was taken, or could be: what it changes, and the bytes that the run needs with it."""

    changes: Changes
    needs: int
    costs: str = ""


@dataclass(frozen=True)
class MemoryFit:
    """How a config was made to fit."""

    config: TrainConfig
    needs: int
    """Bytes, as they are counted."""
    budget: int
    before: int
    """What it needed as it was set."""
    taken: tuple[AppliedSaving, ...]
    kept: tuple[str, ...]
    """Settings made by hand that would have helped, and were left alone."""

    @property
    def fits(self) -> bool:
        return self.needs <= self.budget

    @property
    def changes(self) -> dict[str, Any]:
        """All settings that were changed, as they are at last."""
        return {name: value for step in self.taken for name, value in step.changes.items()}


def with_settings(config: TrainConfig, changes: Changes) -> TrainConfig:
    """``config`` with settings by their dotted names."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        own = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: own})
    return config


def remaining_savings(
    config: TrainConfig, needs: Callable[[TrainConfig], int], on_card: bool, given: Collection[str] = ()
) -> Iterator[AppliedSaving]:
    """Every rung above ``config`` that is worth taking, one upon the other; what is ``given`` stays as it is."""
    now = needs(config)
    for rung in MEMORY_SAVINGS:
        if set(rung.settings) & set(given):
            continue
        while changes := rung.take(config, on_card):
            there = needs(with_settings(config, changes))
            if now - there < WORTH * now:
                break
            config, now = with_settings(config, changes), there
            yield AppliedSaving(changes, there, rung.costs)


def apply_until_fits(
    config: TrainConfig, needs: Callable[[TrainConfig], int], budget: int, on_card: bool, given: Collection[str] = ()
) -> MemoryFit:
    """Take rung after rung until ``config`` fits into ``budget`` bytes, or there is none left.

    ``needs`` tells the bytes that a config takes. What is ``given`` by hand stays as it is.
    """
    before = needs(config)
    taken: list[AppliedSaving] = []
    if before > budget:
        for step in remaining_savings(config, needs, on_card, given):
            taken.append(step)
            if step.needs <= budget:
                break
    now = taken[-1].needs if taken else before
    after = with_settings(config, {name: value for step in taken for name, value in step.changes.items()})
    helpful = {name for rung in MEMORY_SAVINGS if rung.take(after, on_card) for name in rung.settings if name in given}
    return MemoryFit(after, now, budget, before, tuple(taken), tuple(sorted(helpful)) if now > budget else ())


def next_saving(config: TrainConfig, on_card: bool) -> Changes:
    """What the next rung above ``config`` changes; nothing on the last."""
    return next((changes for rung in MEMORY_SAVINGS if (changes := rung.take(config, on_card))), {})


def as_flags(changes: Changes) -> str:
    """``train.batch_size = 1 and train.gradient_accumulation = 4``"""
    return " and ".join(f"{name} = {str(value).lower()}" for name, value in changes.items())


def describe_fit(climbed: MemoryFit, asked: str) -> str:
    """A sentence on what was chosen: ``8 GB: gradient checkpointing on, batch 1 x 4; about 3.10 GiB, counted``."""
    size = f"{format_bytes(climbed.needs)}, counted"
    if not climbed.taken:
        return f"{asked}: nothing was changed to fit; it takes about {size}"
    changes = "; ".join(map(describe_changes, _together(climbed)))
    return f"{asked}: {changes}; about {size}, instead of {format_bytes(climbed.before)}"


def _together(climbed: MemoryFit) -> list[Changes]:
    """The changes by their rung, each setting as it is at last."""
    found: dict[str, dict[str, Any]] = {}
    for step in climbed.taken:
        found.setdefault(next(iter(step.changes)), {}).update(step.changes)
    return list(found.values())


def describe_changes(changes: Changes) -> str:
    """What a rung changes, in a few words."""
    if "train.batch_size" in changes:
        return f"batch {changes['train.batch_size']} x {changes['train.gradient_accumulation']}"
    name, value = next(iter(changes.items()))
    said = {
        "train.offload": "parts that do not train wait in main memory",
        "train.gradient_checkpointing": "gradient checkpointing",
        "optimizer.name": "8-bit optimizer",
    }
    return said.get(name, f"base in {value}")


def refusal(climbed: MemoryFit, asked: str) -> str:
    """A sentence on why nothing fits, with what is left to a person."""
    least = format_bytes(climbed.needs)
    hand = f"; set by hand, and left alone: {', '.join(climbed.kept)}" if climbed.kept else ""
    return (
        f"train.memory = {asked}: this run takes about {least} with every rung of the ladder taken{hand}; take a lower "
        "data.resolution or adapter.rank, class pictures of your own (prior.folder), or more memory"
    )
