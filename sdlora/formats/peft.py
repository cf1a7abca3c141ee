"""PEFT's folders: for each component a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

What ``PeftModel.from_pretrained(unet, FOLDER / "unet")`` loads. All methods but the full difference have a place there;
what PEFT would compute otherwise than this program does is refused, layer by layer.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.adapters import parametrizations
from sdlora.adapters.lycoris import kronecker_factors
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.errors import FormatError
from sdlora.formats.base import Slot, group_by_layer
from sdlora.formats.diffusers import COMPONENTS, alphas, classic
from sdlora.formatting import one_line

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3"}
PREFIX = "base_model.model."
KERNEL = 9
"""Places of a 3 x 3 convolution, whose low-rank tensors have them in their columns."""
UNBIASED = (".to_q", ".to_k", ".to_v")
"""Layers that have no bias in any family: PEFT's (IA)³ scales a bias too, here and in other tools it is left alone."""
_ENDS = {
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector": "magnitude", "ia3_l": "ia3_l",
    **{name: name for method in ("loha", "lokr") for name in parametrizations.tensor_names(method)},
}  # fmt: skip
_KEY = re.compile(rf"(?P<path>.+?)\.(?P<slot>{'|'.join(map(re.escape, sorted(_ENDS, key=len, reverse=True)))})")


Told = Callable[[str, int], float]
"""What ``alphas`` gives."""


class PeftComponent(NamedTuple):
    """One component's folder: its tensors by PEFT's names, and its configuration."""

    tensors: "dict[str, Tensor]"
    config: dict[str, Any]


def component_of(keys: Iterable[str]) -> str:
    """What a folder that lies by itself is for, as its keys tell."""
    return "unet" if any("blocks." in key or "block." in key for key in keys) else "text_encoder"


def parse(component: str, key: str) -> Slot | None:
    """What a tensor of this name in a component's folder is; None if PEFT has no such name."""
    match = _KEY.fullmatch(key.removeprefix(PREFIX))
    path = classic(f"{component}.{match['path']}") if match else None
    return (path, _ENDS[match["slot"]]) if match and path else None


def read(parts: Mapping[str, PeftComponent]) -> AdapterState:
    """The adapter in folders by component. Raises FormatError for what is incomplete or meant otherwise by PEFT."""
    modules: dict[str, ModuleState] = {}
    for component, (tensors, config) in parts.items():
        if config.get("peft_type") not in KINDS.values():
            raise FormatError(f"{component}: is of PEFT's kind {_said(config.get('peft_type'))}, which is not read")
        _require_plain(component, config)
        if config.get("peft_type") == "IA3":
            modules |= _scales(component, tensors)
            continue
        fields = {f"{component}.{name}": config.get(name) for name in ("alpha_pattern", "use_rslora")}
        fields[f"{component}.lora_alpha"] = config.get("lora_alpha", config.get("alpha", 1))
        alpha = alphas(fields)
        own = group_by_layer(tensors, lambda key, component=component: parse(component, key), alpha)  # type: ignore[misc]
        ranks = {
            f"{component}.lora_alpha": config.get("r", 1),
            f"{component}.alpha_pattern": config.get("rank_pattern"),
        }
        rank = alphas(ranks)
        modules |= {path: _as_meant(path, module, rank, alpha) for path, module in own.items()}
    return build_adapter_state(modules)


def _require_plain(component: str, config: Mapping[str, Any]) -> None:
    """Raises FormatError for settings with which the tensors would mean something else than ΔW."""
    start = config.get("init_lora_weights", True)
    other = isinstance(start, str) and start.startswith(("pissa", "corda", "olora"))
    odd = {
        "fan_in_fan_out": config.get("fan_in_fan_out"),
        "modules_to_save": config.get("modules_to_save"),
        "init_lora_weights": start if other else None,
    }
    for name, value in odd.items():
        if value:
            said = f"PEFT's {name} = {_said(value)}"
            raise FormatError(f"{component}: {said} changes what its tensors mean; it is not read")


def _said(value: object) -> str:
    """A configuration's ``value`` in a message: words and numbers alone, as anything else may be of any size."""
    if isinstance(value, str):
        return repr(one_line(value, 60))
    return str(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _as_meant(path: str, module: ModuleState, rank_of: Told, alpha_of: Told) -> ModuleState:
    """PEFT scales a LoKr by alpha / r where neither factor has a rank, too: that goes into a tensor."""
    if module.method != "lokr" or module.rank:
        return module
    rank = rank_of(path, 1)
    if rank < 1:
        raise FormatError(f"{path}: its rank {rank:g} is none")
    scale = alpha_of(path, 1) / rank
    return module if scale == 1.0 else module.scaled_by(scale)


def _scales(component: str, tensors: "Mapping[str, Tensor]") -> dict[str, ModuleState]:
    found: dict[str, ModuleState] = {}
    for key, tensor in tensors.items():
        slot = parse(component, key)
        if slot is None:
            continue
        path, by_input = slot[0], tensor.ndim == 2 and tensor.shape[0] == 1
        if tensor.ndim != 2 or not (by_input or path.endswith(UNBIASED)):
            raise FormatError(f"{path}: PEFT's (IA)³ scales a bias here, or a convolution, which is not read")
        found[path] = ModuleState({"input_scale" if by_input else "output_scale": tensor.flatten() - 1})
    return found


def write(state: AdapterState) -> dict[str, PeftComponent]:
    """Folders by component. Raises FormatError for a layer that PEFT cannot hold as it is."""
    parts: dict[str, PeftComponent] = {}
    for component in COMPONENTS:
        own = {_own(path): module for path, module in state.modules.items() if path.startswith(f"{component}.")}
        methods = {module.method for module in own.values()}
        if len(methods) > 1 or methods - KINDS.keys():
            raise FormatError(f"{component}: PEFT's folders hold one method each, and no full difference")
        if own:
            tensors = {f"{PREFIX}{path}.{end}": t for path, m in own.items() for end, t in _spelt(path, m).items()}
            parts[component] = PeftComponent(tensors, _config(own))
    return parts


def _own(path: str) -> str:
    """The path inside its component, as the installed transformers calls it: CLIPTextModel is flat there."""
    component, _, rest = path.partition(".")
    return rest.removeprefix("text_model.") if component == "text_encoder" else rest


def _spelt(path: str, module: ModuleState) -> "dict[str, Tensor]":
    ends = {name: end for end, name in _ENDS.items()}
    own = dict(module.tensors)
    if "mid" in own or "input_magnitude" in own:
        kind = "LoRA in Tucker form" if "mid" in own else "DoRA's lengths by input"
        raise FormatError(f"{path}: PEFT has no place for {kind}; export with --format kohya")
    if "output_scale" in own and not path.endswith(UNBIASED):
        raise FormatError(f"{path}: PEFT's (IA)³ would scale its bias too; export with --format kohya")
    if module.method == "ia3":
        by_input = "input_scale" in own
        scale = 1 + own["input_scale" if by_input else "output_scale"]
        return {"ia3_l": scale.reshape((1, -1) if by_input else (-1, 1))}
    if "magnitude" in own:
        beside = own["down"].ndim - 2
        own["magnitude"] = own["magnitude"].reshape(1, -1, *[1] * beside) if beside else own["magnitude"]
    return {ends[name]: tensor for name, tensor in own.items()}


def _config(own: Mapping[str, ModuleState]) -> dict[str, Any]:
    """``adapter_config.json`` of a component's layers, by their own paths."""
    method = next(iter(own.values())).method
    config: dict[str, Any] = {"peft_type": KINDS[method], "target_modules": sorted(own), "inference_mode": True}
    if method == "ia3":
        return config | {"feedforward_modules": sorted(p for p, m in own.items() if "input_scale" in m.tensors)}
    ranks, alphas = {}, {}
    for path, module in own.items():
        whole = 0 if module.rank else max(module.tensors["lokr_w2"].shape[:2])  # PEFT then makes both factors whole.
        ranks[path], alphas[path] = module.rank or whole, module.alpha if module.rank else float(whole)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    low = method in ("lora", "dora")
    return {
        **config,
        "r": rank,
        "lora_alpha" if low else "alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        **({"use_dora": method == "dora"} if low else {}),
        **({"use_effective_conv2d": _tucker(own)} if not low else {}),
        **({"decompose_factor": _factor(own), "decompose_both": _both(own)} if method == "lokr" else {}),
    }


def _tucker(own: Mapping[str, ModuleState]) -> bool:
    return any(name in module.tensors for module in own.values() for name in ("hada_t1", "lokr_t2"))


def _both(own: Mapping[str, ModuleState]) -> bool:
    return any("lokr_w1_a" in module.tensors for module in own.values())


def _factor(own: Mapping[str, ModuleState]) -> int:
    """PEFT's ``decompose_factor`` that gives the very shapes of these LoKr layers. Raises FormatError if none does."""
    sides: list[tuple[tuple[int, ...], int]] = []
    for module in own.values():
        t = module.tensors
        rows, columns = t["lokr_w1"].shape if "lokr_w1" in t else (len(t["lokr_w1_a"]), t["lokr_w1_b"].shape[1])
        out, inputs = (side or 0 for side in parametrizations.layer_size(t))
        sides += [((out,), rows), ((inputs, inputs // KERNEL), columns)]
    for factor in (None, *sorted({first for _, first in sides}, reverse=True)):
        if all(first in (_first(side, factor) for side in maybe) for maybe, first in sides):
            return factor or -1
    raise FormatError("the layers' factors are not of one rule that PEFT has; export with --format kohya")


def _first(side: int, factor: int | None) -> int:
    """The side of the first matrix that PEFT makes: the factor itself where it divides, be it the larger part."""
    return factor if factor and side % factor == 0 else kronecker_factors(side, factor)[0]
