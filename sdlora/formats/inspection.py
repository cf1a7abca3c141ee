"""Description of an adapter file: for ``sdlora inspect``, and for matching files to bases."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdlora.adapters.compatibility import cross_attention_width, input_widths
from sdlora.adapters.state import ModuleState
from sdlora.formats.checked_tensors import AdapterContents
from sdlora.formats.infer_base import infer_family
from sdlora.formats.storage import open_adapter
from sdlora.formatting import format_bytes, one_line

MOST_WORDS = 32
"""Largest number of words in a trigger phrase: a longer one is no trigger, and would fill every card."""


@dataclass(frozen=True)
class Inspection:
    """An adapter file, described."""

    path: Path
    size: int
    """Size in bytes."""
    format: str
    method: str
    dtype: str
    family: str
    """Family of its bases, by shapes and header; empty if neither tells."""
    text_width: int | None
    """Width of the text that its UNet layers read; None if it has no cross-attention keys or values."""
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    modules: Mapping[str, int]
    """Number of layers by component."""
    norms: Mapping[str, float]
    """Frobenius norm of ΔW over all layers of a component; see ``delta_square``."""
    parameters: int
    triggers: tuple[str, ...]
    unknown: tuple[str, ...]
    """Keys that name no layer."""
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        layers = (f"{name} {count} layers, |ΔW| {self.norms[name]:.4g}" for name, count in self.modules.items())
        width = f", {self.text_width}-wide text" if self.text_width else ""
        rows = {
            "file": f"{self.path} ({format_bytes(self.size)}, {self.dtype})",
            "format": self.format,
            "method": self.method,
            "family": f"{self.family or 'unknown'}{width}",
            "rank": _listed(self.ranks),
            "alpha": _listed(self.alphas),
            "layers": "; ".join(layers),
            "parameters": f"{self.parameters:,}",
            "triggers": one_line(", ".join(self.triggers)) or "none given",
        }
        if self.unknown:
            rows["left out"] = f"{len(self.unknown)} keys that name no layer, such as {self.unknown[0]}"
        said = ((one_line(key, 60), one_line(text)) for key, text in sorted(self.metadata.items()))
        return "\n".join(f"{name + ':':<34} {text}" for name, text in (*rows.items(), *said))


def inspect_adapter(path: Path) -> Inspection:
    """Describe the adapter file at ``path``. Raises what ``read_adapter`` raises."""
    return describe_contents(path, open_adapter(path))


def describe_contents(path: Path, contents: AdapterContents) -> Inspection:
    """Describe a file that has been read."""
    state = contents.state
    squares: Counter[str] = Counter()
    for name, module in state.modules.items():
        squares[_component(name)] += delta_square(module)  # type: ignore[assignment]  # a Counter adds floats as well
    return Inspection(
        path=path,
        size=sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*.safetensors"))),
        format=contents.format,
        method=state.method,
        dtype=contents.dtype,
        family=infer_family(state),
        text_width=cross_attention_width(input_widths(state)),
        ranks=tuple(sorted({module.rank for module in state.modules.values() if module.rank})),
        alphas=tuple(sorted({module.alpha for module in state.modules.values() if module.rank})),
        modules=Counter(map(_component, state.modules)),
        norms={component: square**0.5 for component, square in squares.items()},
        parameters=sum(tensor.numel() for module in state.modules.values() for tensor in module.tensors.values()),
        triggers=trigger_words(state.metadata),
        unknown=tuple(contents.unknown),
        metadata=state.metadata,
    )


def delta_square(module: ModuleState) -> float:
    """Return ‖ΔW‖²; for DoRA that of its low-rank part, for (IA)³ that of its scales."""
    return module.scale**2 * module.parametrization.delta_square(module.tensors)


def trigger_words(metadata: Mapping[str, str], most: int = 5) -> tuple[str, ...]:
    """Return the words that call an adapter: its trigger phrase, or the most frequent parts of its captions."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return tuple(one_line(word.strip()) for word in phrase.split(",")[:MOST_WORDS] if word.strip())
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({one_line(str(tag).strip()): int(count) for tag, count in tags.items()})
    except (
        AttributeError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ):  # a stranger's header: any JSON, or none
        return ()
    return tuple(tag for tag, _ in counts.most_common(most))


def _component(path: str) -> str:
    return path.partition(".")[0]


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
