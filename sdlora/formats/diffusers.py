"""Keys of diffusers and PEFT: ``unet.<path>.lora_A.weight``, and older spellings of the same.

There is no alpha tensor: an alpha that differs from the rank is in the header, under ``lora_adapter_metadata``, as PEFT
configurations by component (diffusers 0.34 and newer write and read it).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sdlora.adapters.state import AdapterState, build_adapter_state
from sdlora.errors import FormatError
from sdlora.families import adaptable_components, denoisers
from sdlora.formats.base import Slot, group_by_layer
from sdlora.formats.infer_base import naming_family
from sdlora.formats.metadata import PEFT_HEADER, network_metadata
from sdlora.formatting import one_line

if TYPE_CHECKING:
    from torch import Tensor

MOST = 1 << 20
"""Largest alpha or rank that is accepted."""
MOST_PATTERNS = 4096
"""More patterns than any base has layers; each is compared with each layer."""
_SLOTS = {
    "lora_A": "down", "lora_B": "up", "down": "down", "up": "up", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
_PEFT = re.compile(r"(?P<path>.+?)\.(?P<slot>lora_[AB])(?:\.default)?\.weight")
_LENGTHS = re.compile(r"(?P<path>.+?)\.(?P<slot>lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
_OLDER = re.compile(r"(?P<path>.+?)\.(?:lora|lora_linear_layer)\.(?P<slot>down|up)\.weight")
_OLDEST = re.compile(r"(?P<path>.+?)(?:\.processor)?\.to_(?P<role>q|k|v|out)_lora\.(?P<slot>down|up)\.weight")
_ALPHA = re.compile(r"(?P<path>.+?)\.alpha")
_PLAIN = re.compile(r"\^?([\w.]+)\$?")


def classic(path: str) -> str | None:
    """Return a path of any spelling with its component, and its classic beginning in it; None if it is none."""
    component, _, rest = path.partition(".")
    if not rest:
        return None
    for name, denoiser in denoisers().items():
        if component in denoiser.layers.roots:
            return f"{name}.{path}"
    components = adaptable_components()
    if component not in components:
        return None
    layers = components[component].layers
    return path if rest.split(".")[0] in layers.roots else f"{component}.{layers.prefix}{rest}"


def _role(path: str, role: str) -> str:
    """Return the layer that an attention processor's ``to_q_lora`` stands for."""
    if path.endswith("self_attn"):
        return f"{path}.{role}_proj"
    return f"{path}.to_out.0" if role == "out" else f"{path}.to_{role}"


class Diffusers:
    """Reads all spellings of diffusers and PEFT, writes PEFT's with ``lora_adapter_metadata``."""

    name = "diffusers"

    def parse(self, key: str) -> Slot | None:
        if oldest := _OLDEST.fullmatch(key):
            path, slot = classic(_role(oldest["path"], oldest["role"])), _SLOTS[oldest["slot"]]
        elif match := _PEFT.fullmatch(key) or _LENGTHS.fullmatch(key) or _OLDER.fullmatch(key):
            path, slot = classic(match["path"]), _SLOTS[match["slot"]]
        elif match := _ALPHA.fullmatch(key):
            path, slot = classic(match["path"]), "alpha"
        else:
            return None
        return (path, slot) if path else None

    def can_read(self, keys: Iterable[str]) -> bool:
        return any(self.parse(key) for key in keys)

    def read(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> AdapterState:
        modules = group_by_layer(tensors, self.parse, alphas(_configs(metadata)))
        return build_adapter_state(modules, {key: text for key, text in metadata.items() if key != PEFT_HEADER})

    def write(self, state: AdapterState) -> "tuple[dict[str, Tensor], dict[str, str]]":
        tensors = {}
        for path, module in state.modules.items():
            if module.tensors.keys() - {"down", "up", "magnitude"}:
                kind = "DoRA's lengths by input" if "input_magnitude" in module.tensors else module.method
                kind = "LoRA in Tucker form" if "mid" in module.tensors else kind
                raise FormatError(f"{path}: diffusers' keys have no names for {kind}; export with --format kohya")
            tensors[f"{path}.lora_A.weight"] = module.tensors["down"]
            tensors[f"{path}.lora_B.weight"] = module.tensors["up"]
            if "magnitude" in module.tensors:
                lengths, beside = module.tensors["magnitude"], module.tensors["down"].ndim - 2
                tensors[f"{path}.lora_magnitude_vector.weight"] = (
                    lengths.view(1, -1, *[1] * beside) if beside else lengths
                )
        return tensors, {
            **state.metadata,
            **network_metadata(state.modules, naming_family(state)),
            PEFT_HEADER: json.dumps(_header(state), sort_keys=True),
        }


def _header(state: AdapterState) -> dict[str, Any]:
    """Build PEFT's configuration of every component, as diffusers stores it: ``{"unet.r": 16, ...}``.

    Once the header exists, diffusers uses PEFT's defaults for a component that it does not name: all are named. Text
    encoder layers are written without ``text_model``: PEFT matches them by the ends of their names.
    """
    fields: dict[str, Any] = {}
    components = adaptable_components()
    for component in dict.fromkeys(path.partition(".")[0] for path in state.modules):
        prefixes = (f"{component}.{components[component].layers.prefix}", f"{component}.")
        own = {_without(path, prefixes): module for path, module in state.modules.items() if path.startswith(prefixes)}
        if len({module.method for module in own.values()}) > 1:  # One use_dora applies to all of them.
            raise FormatError(f"{component}: diffusers' keys hold LoRA or DoRA, not both; export with --format kohya")
        ranks, alphas = {p: m.rank for p, m in own.items()}, {p: _int_if_integral(m.alpha) for p, m in own.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        fields |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.rank_pattern": {path: value for path, value in ranks.items() if value != rank},
            f"{component}.alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
            f"{component}.target_modules": sorted(own),
            **({f"{component}.use_dora": True} if any("magnitude" in m.tensors for m in own.values()) else {}),
        }
    return fields


def _configs(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the header's fields by their dotted names. Raises FormatError if it is no flat JSON object."""
    try:
        fields = json.loads(metadata.get(PEFT_HEADER) or "{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise FormatError(f"the header's {PEFT_HEADER} is no JSON object")
    return fields


def alphas(configs: Mapping[str, Any]) -> Callable[[str, int], float]:
    """Return a function that gives a layer's alpha by path and rank, as PEFT reads it from the header's ``configs``.

    It is the rank if the header does not mention the component. Raises FormatError for a pattern that is no layer name;
    so does the function for an alpha that is no number.
    """
    given = {name: configs[f"{name}.lora_alpha"] for name in adaptable_components() if f"{name}.lora_alpha" in configs}
    patterns = {name: _patterns(configs.get(f"{name}.alpha_pattern")) for name in given}

    def alpha(path: str, rank: int) -> float:
        component, _, rest = path.partition(".")
        if component not in given:
            return float(rank)
        steps = rest.split(".")
        ends = (".".join(steps[number:]) for number in range(len(steps)))
        found = [patterns[component][end] for end in ends if end in patterns[component]]
        value = max(found, key=lambda one: one[0])[1] if found else given[component]  # The last match counts.
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
            said = one_line(value, 40) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            raise FormatError(f"{path}: the header's alpha {said!r} is no number up to {MOST}")
        # rsLoRA scales by alpha / sqrt(rank) (arXiv:2312.03732)
        return float(value) * (math.sqrt(rank) if configs.get(f"{component}.use_rslora") else 1.0)

    return alpha


def _patterns(patterns: Any) -> dict[str, tuple[int, Any]]:
    """Return positions and values of an ``alpha_pattern``, by the path endings that they apply to."""
    if not isinstance(patterns, dict):
        return {}
    if len(patterns) > MOST_PATTERNS:
        raise FormatError(f"the header's alpha_pattern has {len(patterns)} entries, over the allowed {MOST_PATTERNS}")
    found: dict[str, tuple[int, Any]] = {}
    for position, (pattern, value) in enumerate(patterns.items()):
        plain = _PLAIN.fullmatch(pattern.replace("\\.", "."))
        if plain is None:
            raise FormatError(f"the header's alpha_pattern {one_line(pattern)!r} is no plain layer name")
        found[plain[1]] = position, value
    return found


def _int_if_integral(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _without(path: str, prefixes: tuple[str, ...]) -> str:
    return next(path.removeprefix(prefix) for prefix in prefixes if path.startswith(prefix))
