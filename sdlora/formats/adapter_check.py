"""Self-test of an adapter file against a base: its facts, what of it fits, and why it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.adapters.compatibility import cross_attention_width, incompatible_layers, input_widths
from sdlora.adapters.state import AdapterState
from sdlora.adapters.targets import adaptable_layers
from sdlora.errors import FormatError, MismatchError, SdloraError
from sdlora.families import family_title
from sdlora.formats.header_summary import HeaderSummary, read_header_summary
from sdlora.formats.inspection import describe_contents
from sdlora.formats.peft_folder import is_peft_folder
from sdlora.formats.storage import open_adapter

if TYPE_CHECKING:
    from torch import nn

LISTED = 200
"""Largest number of mismatched keys and layers that are named."""


@dataclass(frozen=True)
class TargetBase:
    """A base to check against: its display name, its family, and its modules, of which only the shapes matter."""

    name: str
    family: str
    models: "Mapping[str, nn.Module]"


@dataclass(frozen=True)
class AdapterCheck:
    """Result of the self-test. ``refusal`` is one sentence, empty for a good file."""

    refusal: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values in display order: method, rank, trigger words, ..."""
    base: str = ""
    """Name of the base that it was checked against; empty if none."""
    layers: int = 0
    fitting: int = 0
    """Number of its layers that the base has, in the same shape."""
    misfits: tuple[str, ...] = ()
    """First layers that do not fit, each with its reason."""
    unknown: int = 0
    """Number of keys that name no layer anywhere; ``strange`` lists the first."""
    strange: tuple[str, ...] = ()
    said: str = ""
    """Output of ``sdlora inspect`` for it."""


def check_adapter(path: Path, base: TargetBase | None = None) -> AdapterCheck:
    """Read the complete file at ``path`` and compare its layers with ``base``. Never raises for a bad file."""
    facts: tuple[tuple[str, str], ...] = ()
    name = base.name if base else ""
    try:
        card = None if is_peft_folder(path) else _summary(path)  # PEFT's folders have no header to go by.
        facts = _facts(card) if card else ()
        if base and card and card.family and base.family and card.family != base.family:
            sentence = _wrong(family_title(card.family), base.name, family_title(base.family))
            return AdapterCheck(sentence, facts=facts, base=name)
        contents = open_adapter(path)
        layers, keys = len(contents.state.modules), contents.unknown
        unfit = incompatible_layers(base.models, contents.state) if base else {}
        return AdapterCheck(
            refusal=_unfit(contents.state, unfit, base) if base and unfit else "",
            facts=facts,
            base=name,
            layers=layers,
            fitting=layers - len(unfit),
            misfits=tuple(f"{layer}: {reason}" for layer, reason in list(unfit.items())[:LISTED]),
            unknown=len(keys),
            strange=tuple(keys[:LISTED]),
            said=str(describe_contents(path, contents)).replace(str(path), path.name),
        )
    except SdloraError as error:
        return AdapterCheck(str(error).replace(str(path), path.name), facts=facts, base=name)


def _summary(path: Path) -> HeaderSummary:
    """Read the header; if it shows no adapter, reading the tensors gives a more exact reason."""
    try:
        return read_header_summary(path)
    except FormatError:
        open_adapter(path)
        raise


def require_fits(path: Path, base: str) -> str:
    """Describe how much of the file at ``path`` fits ``base``. Raises MismatchError with the reason if not."""
    from sdlora.families.meta_model import build_meta_model

    check = check_adapter(path, TargetBase(Path(base).name, *build_meta_model(base)))
    if check.refusal:
        raise MismatchError(f"{path}: {check.refusal}")
    return f"{check.fitting} of {check.layers} layers match {check.base}"


def _facts(card: HeaderSummary) -> tuple[tuple[str, str], ...]:
    found = {
        "Family": family_title(card.family) or "not told",
        "Base": card.base or "not told",
        "Method": card.method,
        "Rank": card.rank or "not told",
        "Alpha": card.alpha or "as the rank, or beside each layer",
        "Trigger words": ", ".join(card.triggers) or "none given",
        "Format": card.format or "not known",
    }
    return tuple(found.items())


def _wrong(theirs: str, name: str, ours: str) -> str:
    return f"This adapter is for {theirs}; {name}" + (f" is {ours}." if ours else " is not.")


def _unfit(state: AdapterState, unfit: Mapping[str, str], base: TargetBase) -> str:
    """Return the reason why it cannot go into this base, in one sentence."""
    from torch import nn

    theirs = cross_attention_width(input_widths(state))
    inputs = {path: layer.in_features for path, layer in adaptable_layers(base.models) if isinstance(layer, nn.Linear)}
    ours = cross_attention_width(inputs)
    if theirs and ours and theirs != ours:
        return f"This adapter is for a base that reads {theirs}-wide text; {base.name} reads {ours}-wide text."
    first = next(iter(unfit.items()))
    count = f"{len(unfit)} of its {len(state.modules)} layers do not fit {base.name}"
    return f"{count}, such as {first[0]} ({first[1]}); choose the base that it was made for."
