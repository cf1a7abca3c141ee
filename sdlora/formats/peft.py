"""PEFT's folders: for each component one folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

``PeftModel.from_pretrained(unet, FOLDER / "unet")`` loads them. They can express all methods but the full difference;
layers that PEFT would compute differently are refused by name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.adapters import parametrizations
from sdlora.adapters.lycoris import Loha, Lokr, kronecker_factors
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.errors import FormatError
from sdlora.families import FAMILIES, adaptable_components
from sdlora.formats.base import Slot, group_by_layer
from sdlora.formats.diffusers import alphas, classic
from sdlora.formats.infer_base import naming_family
from sdlora.formatting import one_line

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3"}
PREFIX = "base_model.model."
KERNEL = 9
"""Number of positions of a 3 x 3 convolution, which its low-rank tensors have in their columns."""
_ENDS = {
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector": "magnitude", "ia3_l": "ia3_l",
    **{name: name for method in (Loha, Lokr) for name in method.parametrization.names},
}  # fmt: skip
_KEY = re.compile(rf"(?P<path>.+?)\.(?P<slot>{'|'.join(map(re.escape, sorted(_ENDS, key=len, reverse=True)))})")


Told = Callable[[str, int], float]
"""Function from a layer's path and rank to its alpha, as ``alphas`` returns it."""


class PeftComponent(NamedTuple):
    """Folder of one component: its tensors by PEFT's names, and its configuration."""

    tensors: "dict[str, Tensor]"
    config: dict[str, Any]


def component_of(keys: Iterable[str]) -> str:
    """Infer from its keys which component a folder is for: by their beginnings, else the first that may lack one."""
    roots = {key.removeprefix(PREFIX).partition(".")[0] for key in keys}
    components = adaptable_components()
    known = (name for name, component in components.items() if roots & {*component.layers.roots})
    return next(known, next(name for name, component in components.items() if component.layers.prefix))


def parse(component: str, key: str) -> Slot | None:
    """Return the layer and tensor that ``key`` names in a component's folder; None if PEFT has no such name."""
    match = _KEY.fullmatch(key.removeprefix(PREFIX))
    path = classic(f"{component}.{match['path']}") if match else None
    return (path, _ENDS[match["slot"]]) if match and path else None


def read(parts: Mapping[str, PeftComponent]) -> AdapterState:
    """Return the adapter in folders by component. Raises FormatError if it is incomplete or PEFT computes it
    differently.
    """
    modules: dict[str, ModuleState] = {}
    for component, (tensors, config) in parts.items():
        if config.get("peft_type") not in KINDS.values():
            raise FormatError(
                f"{component}: is of PEFT's kind {_short_repr(config.get('peft_type'))}, which is not read"
            )
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
        modules |= {path: _fold_lokr_alpha(path, module, rank, alpha) for path, module in own.items()}
    return build_adapter_state(modules)


def _require_plain(component: str, config: Mapping[str, Any]) -> None:
    """Raise FormatError for settings that make the tensors mean something other than ΔW."""
    start = config.get("init_lora_weights", True)
    other = isinstance(start, str) and start.startswith(("pissa", "corda", "olora"))
    odd = {
        "fan_in_fan_out": config.get("fan_in_fan_out"),
        "modules_to_save": config.get("modules_to_save"),
        "init_lora_weights": start if other else None,
    }
    for name, value in odd.items():
        if value:
            said = f"PEFT's {name} = {_short_repr(value)}"
            raise FormatError(f"{component}: {said} changes what its tensors mean; it is not read")


def _short_repr(value: object) -> str:
    """Return a configuration's ``value`` for a message: only strings and numbers, as others may be of any size."""
    if isinstance(value, str):
        return repr(one_line(value, 60))
    return str(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _fold_lokr_alpha(path: str, module: ModuleState, rank_of: Told, alpha_of: Told) -> ModuleState:
    """Fold PEFT's alpha / r of a LoKr whose factors have no rank into a tensor."""
    if module.rank or not module.parametrization.ranked:
        return module
    rank = rank_of(path, 1)
    if rank < 1:
        raise FormatError(f"{path}: its rank {rank:g} is none")
    scale = alpha_of(path, 1) / rank
    return module if scale == 1.0 else module.scaled_by(scale)


def _scales(component: str, tensors: "Mapping[str, Tensor]") -> dict[str, ModuleState]:
    found: dict[str, ModuleState] = {}
    unbiased = adaptable_components()[component].layers.unbiased
    for key, tensor in tensors.items():
        slot = parse(component, key)
        if slot is None:
            continue
        path, by_input = slot[0], tensor.ndim == 2 and tensor.shape[0] == 1
        if tensor.ndim != 2 or not (by_input or path.endswith(unbiased)):
            raise FormatError(f"{path}: PEFT's (IA)³ scales a bias here, or a convolution, which is not read")
        found[path] = ModuleState({"input_scale" if by_input else "output_scale": tensor.flatten() - 1})
    return found


def write(state: AdapterState) -> dict[str, PeftComponent]:
    """Return folders by component. Raises FormatError for a layer that PEFT cannot hold as it is."""
    parts: dict[str, PeftComponent] = {}
    components = {**adaptable_components(), **FAMILIES[naming_family(state)].components}
    for name, component in components.items():
        layers, inside = component.layers, f"{name}."
        left_out = inside + (layers.prefix if layers.flat else "")  # As the installed library names its layers.
        own = {
            path.removeprefix(left_out).removeprefix(inside): module
            for path, module in state.modules.items() if path.startswith(inside)
        }  # fmt: skip
        methods = {module.method for module in own.values()}
        if len(methods) > 1 or methods - KINDS.keys():
            raise FormatError(f"{name}: PEFT's folders hold one method each, and no full difference")
        if own:
            tensors = {
                f"{PREFIX}{path}.{end}": t
                for path, m in own.items() for end, t in _peft_tensors(path, m, layers.unbiased).items()
            }  # fmt: skip
            parts[name] = PeftComponent(tensors, _config(own))
    return parts


def _peft_tensors(path: str, module: ModuleState, unbiased: tuple[str, ...]) -> "dict[str, Tensor]":
    ends = {name: end for end, name in _ENDS.items()}
    own = dict(module.tensors)
    if "mid" in own or "input_magnitude" in own:
        kind = "LoRA in Tucker form" if "mid" in own else "DoRA's lengths by input"
        raise FormatError(f"{path}: PEFT has no place for {kind}; export with --format kohya")
    if "output_scale" in own and not path.endswith(unbiased):  # Other tools scale no bias.
        raise FormatError(f"{path}: PEFT's (IA)³ would scale its bias too; export with --format kohya")
    for name in own.keys() & {"output_scale", "input_scale"}:
        by_input, scale = name == "input_scale", 1 + own[name]
        return {"ia3_l": scale.reshape((1, -1) if by_input else (-1, 1))}
    if "magnitude" in own:
        beside = own["down"].ndim - 2
        own["magnitude"] = own["magnitude"].reshape(1, -1, *[1] * beside) if beside else own["magnitude"]
    return {ends[name]: tensor for name, tensor in own.items()}


def _config(own: Mapping[str, ModuleState]) -> dict[str, Any]:
    """Build ``adapter_config.json`` for a component's layers, by their paths in it."""
    first = next(iter(own.values()))
    kind = KINDS[first.method]
    config: dict[str, Any] = {"peft_type": kind, "target_modules": sorted(own), "inference_mode": True}
    if kind == "IA3":
        return config | {"feedforward_modules": sorted(p for p, m in own.items() if "input_scale" in m.tensors)}
    ranks, alphas = {}, {}
    for path, module in own.items():
        whole = 0 if module.rank else max(module.tensors["lokr_w2"].shape[:2])  # PEFT then makes both factors whole.
        ranks[path], alphas[path] = module.rank or whole, module.alpha if module.rank else float(whole)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    low = kind == "LORA"
    return {
        **config,
        "r": rank,
        "lora_alpha" if low else "alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        **({"use_dora": "magnitude" in first.tensors} if low else {}),
        **({"use_effective_conv2d": _tucker(own)} if not low else {}),
        **({"decompose_factor": _factor(own), "decompose_both": _both(own)} if kind == "LOKR" else {}),
    }


def _tucker(own: Mapping[str, ModuleState]) -> bool:
    return any(name in module.tensors for module in own.values() for name in ("hada_t1", "lokr_t2"))


def _both(own: Mapping[str, ModuleState]) -> bool:
    return any("lokr_w1_a" in module.tensors for module in own.values())


def _factor(own: Mapping[str, ModuleState]) -> int:
    """Find PEFT's ``decompose_factor`` for the shapes of these LoKr layers. Raises FormatError if there is none."""
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
    """Return the side of the first matrix that PEFT makes: the factor itself if it divides, even if it is the larger
    part.
    """
    return factor if factor and side % factor == 0 else kronecker_factors(side, factor)[0]
