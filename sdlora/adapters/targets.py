"""Layers of a base model that an adapter goes into: named groups, or patterns on module paths.

A layer is named as in an ``AdapterState``: ``component.path`` with classic names, such as
``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``. Only linear layers and plain convolutions can carry an
adapter. The groups name roles (attention, feed-forward, projection); each family declares for its components which
layers have them (``sdlora.families.base.Component``).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sdlora.errors import ConfigError
from sdlora.families import FAMILIES, adaptable_components
from sdlora.formatting import did_you_mean

if TYPE_CHECKING:
    from torch import nn

GROUPS = ("cross-attention", "attention", "attention+ff", "linear", "linear+conv", "ia3")
"""Names of the groups of layers that a family may declare."""


def matches(path: str, pattern: str) -> bool:
    """Return whether ``pattern`` names ``path``: as the path or a leading part of it, or as a glob over the whole.

    In a glob, ``*`` stands for any characters, dots too, ``?`` for one, ``[kv]`` for one of a set.
    """
    return path == pattern or path.startswith(f"{pattern}.") or fnmatchcase(path, pattern)


def split_targets(targets: str) -> list[str]:
    """The groups and patterns in ``targets``, which commas separate.

    Raises ValueError for a part that is no group and cannot name a module, with the nearest group.
    """
    found = [part.strip() for part in targets.split(",")]
    components = adaptable_components()
    for part in found:
        is_pattern = part.split(".")[0] in components or set(part) & set("*?[")
        if part not in GROUPS and not is_pattern:
            hint = did_you_mean(part, GROUPS, f"take one of {', '.join(GROUPS)}", cutoff=0.5)
            paths = " or ".join(components)
            raise ValueError(f"{part!r} is no group, no path in {paths}, and no pattern such as '*.to_k'; {hint}")
    return found


def classic_prefix(model: "nn.Module") -> str:
    """Return what a model's own module names lack of their classic ones.

    transformers 5 made CLIPTextModel flat (``encoder.layers.0``); files, other tools and this program
    keep calling it ``text_model.encoder.layers.0``. CLIPTextModelWithProjection still has it.
    """
    return "text_model." if hasattr(model, "encoder") and not hasattr(model, "text_model") else ""


def adaptable_layers(models: Mapping[str, "nn.Module"]) -> Iterator[tuple[str, "nn.Module"]]:
    """(classic path, base layer) for every layer that can carry an adapter, whether or not one does."""
    from torch import nn

    for component, model in models.items():
        prefix = f"{component}.{classic_prefix(model)}"
        inside = "\0"
        for path, module in model.named_modules():
            if path.startswith(inside):
                continue
            base = module
            while hasattr(base, "base_layer"):
                base, inside = base.base_layer, f"{path}."
            if isinstance(base, nn.Linear) or (isinstance(base, nn.Conv2d) and base.groups == 1):
                yield prefix + path, base


ALL_LAYERS = "linear+conv"
"""The group of every layer that carries an adapter in training, but for what only patterns reach."""


def select_layers(models: Mapping[str, "nn.Module"], targets: str, text_encoder: bool = True) -> list[str]:
    """The classic paths of the layers in ``models`` that ``targets`` names, in the models' order.

    ``text_encoder=False`` leaves the text encoders out. Raises ConfigError if a part of ``targets``
    matches nothing or can name nothing, naming near ones.
    """
    served = {name: model for name, model in models.items() if text_encoder or not name.startswith("text_encoder")}
    paths = [path for path, _ in adaptable_layers(served)]
    chosen: set[str] = set()
    try:
        asked = split_targets(targets)
    except ValueError as error:
        raise ConfigError(f"adapter.targets: {error}") from None
    for part in asked:
        found = _group(served, part, paths) if part in GROUPS else [path for path in paths if matches(path, part)]
        if not found:
            where = " and ".join(served)
            raise ConfigError(
                f"adapter.targets: {part!r} matches no layer of the {where}; {nearest_paths_hint(part, paths)}"
            )
        chosen.update(found)
    return [path for path in paths if path in chosen]


def _group(models: Mapping[str, "nn.Module"], group: str, paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` that the families declare as ``group``, by the classes of the components' modules."""
    declared = {
        cls: component.target_groups for family in FAMILIES.values() for component in family.components.values()
        for cls in component.classes
    }  # fmt: skip
    patterns = {name: declared.get(type(model).__name__, {}).get(group) for name, model in models.items()}
    parts = ((path, *path.split(".", 1)) for path in paths)
    return [path for path, name, rest in parts if (pattern := patterns[name]) and re.fullmatch(pattern, rest)]


def nearest_paths_hint(pattern: str, paths: Iterable[str]) -> str:
    """A remedy for a pattern that matches nothing: the paths, or beginnings of paths, that look most like it."""
    ways = (path.split(".") for path in paths)
    candidates = {".".join(steps[:n]) for steps in ways for n in range(1, len(steps) + 1)}
    return did_you_mean(pattern, sorted(candidates), f"the groups are {', '.join(GROUPS)}", most=3, cutoff=0.3)


def parse_pattern_values(text: str) -> dict[str, float]:
    """Parse ``"text_encoder=4, *.attn1.*=8"`` to numbers by pattern. Raises ValueError for anything else."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, number = part.rpartition("=")
        try:
            found[pattern.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals or not pattern.strip():
            raise ValueError(f"{part!r}: write a path or pattern and a number, such as *.attn1.*=4")
    return found


def lookup_pattern(path: str, values: Mapping[str, float], otherwise: float) -> float:
    """The value of the longest pattern in ``values`` that names ``path``."""
    fitting = [pattern for pattern in values if matches(path, pattern)]
    return values[max(fitting, key=len)] if fitting else otherwise


def require_matches(setting: str, values: Iterable[str], paths: list[str]) -> None:
    """Raises ConfigError for a pattern in ``values`` that names none of ``paths``, with near ones."""
    for pattern in values:
        if not any(matches(path, pattern) for path in paths):
            raise ConfigError(f"{setting}: {pattern!r} matches no adapted layer; {nearest_paths_hint(pattern, paths)}")
