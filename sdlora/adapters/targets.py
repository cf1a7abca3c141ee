"""Which layers of a base model an adapter goes into: named groups, or patterns on module paths.

A layer is named as in an ``AdapterState``: ``component.path`` with classic names, such as
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k`` or
``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``. Only linear layers and plain
convolutions can carry an adapter. The groups hold for SD 1.x, SD 2.x and SDXL alike: they ask for
roles (attention, feed-forward, projection), not for block numbers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_BLOCKS = r"unet\.(down_blocks|mid_block|up_blocks)\..*"
_CROSS = _BLOCKS + r"\.attn2\.(to_[qkv]|to_out\.0)"
_ATTENTION = _BLOCKS + r"\.attn[12]\.(to_[qkv]|to_out\.0)"
_FEED_FORWARD = _BLOCKS + r"\.ff\.net\.(0\.proj|2)"
_TRANSFORMER = _BLOCKS + r"\.?attentions\.\d+\..+"
_TEXT_ATTENTION = r"text_encoder(_2)?\..*\.self_attn\.(q|k|v|out)_proj"
_TEXT_MLP = r"text_encoder(_2)?\..*\.mlp\.fc[12]"
_VALUES = _BLOCKS + r"\.(attn[12]\.to_[kv]|ff\.net\.2)"
_TEXT_VALUES = r"text_encoder(_2)?\..*\.(self_attn\.[kv]_proj|mlp\.fc2)"

GROUPS: Mapping[str, re.Pattern[str]] = {
    name: re.compile("|".join(roles))
    for name, roles in {
        "cross-attention": (_CROSS, _TEXT_ATTENTION),
        "attention": (_ATTENTION, _TEXT_ATTENTION),
        "attention+ff": (_ATTENTION, _FEED_FORWARD, _TEXT_ATTENTION, _TEXT_MLP),
        "linear": (_TRANSFORMER, _TEXT_ATTENTION, _TEXT_MLP),
        "linear+conv": (_BLOCKS, _TEXT_ATTENTION, _TEXT_MLP),
        "ia3": (_VALUES, _TEXT_VALUES),
    }.items()
}
"""Named groups, as expressions on the whole path. ``linear`` is what sd-scripts adapts by default
(Transformer2DModel, CLIPAttention, CLIPMLP); ``linear+conv`` adds the ResnetBlock2D, Downsample2D and
Upsample2D that it adapts with a ``conv_dim`` (github.com/kohya-ss/sd-scripts, networks/lora.py). ``ia3`` are keys,
values and the second layer of feed-forward nets (arXiv:2205.05638, section 3.3)."""


def matches(path: str, pattern: str) -> bool:
    """Whether ``pattern`` names ``path``: as the path or a leading part of it, or as a glob over the whole.

    In a glob, ``*`` stands for any characters, dots too, ``?`` for one, ``[kv]`` for one of a set.
    """
    return path == pattern or path.startswith(f"{pattern}.") or fnmatchcase(path, pattern)


def split_targets(targets: str) -> list[str]:
    """The groups and patterns in ``targets``, which commas separate.

    Raises ValueError for a part that is no group and cannot name a module, with the nearest group.
    """
    found = [part.strip() for part in targets.split(",")]
    for part in found:
        is_pattern = part.split(".")[0] in ("unet", "text_encoder", "text_encoder_2") or set(part) & set("*?[")
        if part not in GROUPS and not is_pattern:
            hint = did_you_mean(part, GROUPS, f"take one of {', '.join(GROUPS)}", cutoff=0.5)
            raise ValueError(f"{part!r} is no group, and no path such as 'unet.up_blocks' or '*.to_k'; {hint}")
    return found


def classic_prefix(model: "nn.Module") -> str:
    """What a model's own module names lack of their classic ones.

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
        found = [path for path in paths if (GROUPS[part].fullmatch(path) if part in GROUPS else matches(path, part))]
        if not found:
            where = " and ".join(served)
            raise ConfigError(
                f"adapter.targets: {part!r} matches no layer of the {where}; {nearest_paths_hint(part, paths)}"
            )
        chosen.update(found)
    return [path for path in paths if path in chosen]


def nearest_paths_hint(pattern: str, paths: Iterable[str]) -> str:
    """A remedy for a pattern that matches nothing: the paths, or beginnings of paths, that look most like it."""
    ways = (path.split(".") for path in paths)
    candidates = {".".join(steps[:n]) for steps in ways for n in range(1, len(steps) + 1)}
    return did_you_mean(pattern, sorted(candidates), f"the groups are {', '.join(GROUPS)}", most=3, cutoff=0.3)


def parse_pattern_values(text: str) -> dict[str, float]:
    """``"unet.mid_block=4, *.attn1.*=8"`` as numbers by pattern. Raises ValueError for anything else."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, number = part.rpartition("=")
        try:
            found[pattern.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals or not pattern.strip():
            raise ValueError(f"{part!r}: write a path or pattern and a number, such as unet.mid_block=4")
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
