"""Keys of kohya's sd-scripts and LyCORIS: read by A1111, Forge, ComfyUI, InvokeAI and diffusers.

``PREFIX_<path with _ for .>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``: the prefixes, and the paths where
they are not diffusers', are the family's (``AdapterNaming``). See networks/lora.py in github.com/kohya-ss/sd-scripts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.errors import FormatError
from sdlora.families import FAMILIES, family_components
from sdlora.families.base import Family
from sdlora.formats.base import RAW, Slot, group_by_layer
from sdlora.formats.diffusers import classic
from sdlora.formats.infer_base import naming_family
from sdlora.formats.metadata import PEFT_HEADER, network_metadata

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid", "alpha": "alpha"}
"""Ends of keys that are not a tensor's neutral name, which are LyCORIS's."""
NAMES = {slot: name for name, slot in SLOTS.items()}
RESPELT = {*NAMES, "magnitude", "input_magnitude", "output_scale", "input_scale"}
"""Neutral names that no key ends with."""
DORA_ELSEWHERE = (
    "A1111, ComfyUI and Forge read a DoRA's lengths differently and generate other images with it; diffusers ignores "
    "them. For diffusers, export with --format diffusers; for the others, resize --base makes a LoRA of it"
)
"""Advice on a DoRA in these keys; docs/formats.md has the details."""


def _own_names() -> set[str]:
    """Ends of keys that are what they are called."""
    names = {name for own in parametrizations.parametrizations().values() for name in own.names}
    return names - RESPELT | {*RAW}


def path_steps() -> frozenset[str]:
    """Return every step of a layer's path in any family, except numbers."""
    return frozenset(step for component in family_components().values() for step in component.layers.steps)


def dotted(name: str) -> str | None:
    """Convert ``down_blocks_0_attentions_1_proj_in`` to ``down_blocks.0.attentions.1.proj_in``; None if it is no known
    path.
    """
    pattern, steps, position = _reading(tuple(FAMILIES.values())).step, [], 0
    while position < len(name):
        step = pattern.match(name, position)
        if step is None:
            return None
        steps.append(step[1])
        position = step.end()
    return ".".join(steps)


class _Reading(NamedTuple):
    """Declarations of the families by which keys are read."""

    step: re.Pattern[str]
    """One step of a name, whose steps are joined by ``_``, which some contain."""
    prefixes: dict[str, list[tuple[str, Callable[[str], str], tuple[str, ...]]]]
    """Components by the beginnings of keys, with the way back to their paths, and the first steps of these."""


@lru_cache(maxsize=4)
def _reading(families: tuple[type[Family], ...]) -> _Reading:
    steps = "|".join(sorted(path_steps(), key=len, reverse=True))
    prefixes: dict[str, list[tuple[str, Callable[[str], str], tuple[str, ...]]]] = {}
    for family in families:
        for prefix, component in family.adapter_naming.components.items():
            back = family.adapter_naming.from_kohya if component == family.denoiser else str
            reading = component, back, family.components[component].layers.roots
            if reading not in prefixes.setdefault(f"{prefix}_", []):
                prefixes[f"{prefix}_"].append(reading)
    return _Reading(re.compile(rf"({steps}|\d+)(?:_(?=.)|$)"), prefixes)


def layer_path(stem: str) -> str | None:
    """Return the classic path of the layer that a key's ``stem`` names, by the first family that has it, else None.

    Families share prefixes: one whose paths begin as this one goes before others.
    """
    found: list[str] = []
    for prefix, readings in _reading(tuple(FAMILIES.values())).prefixes.items():
        rest = dotted(stem.removeprefix(prefix)) if stem.startswith(prefix) else None
        if rest is None:
            continue
        for component, back, roots in readings:
            # With transformers 5, LyCORIS leaves text_model out of its names.
            path = classic(f"{component}.{back(rest)}")
            if path and path.split(".")[1] in roots:
                return path
            found += [path] if path else []
    return next(iter(found), None)


class Kohya:
    """kohya's keys as each family's ``adapter_naming`` has them, each layer's alpha beside its ``down`` and ``up``."""

    name = "kohya"

    def parse(self, key: str) -> Slot | None:
        stem, _, tensor = key.partition(".")
        if not (tensor in SLOTS or tensor in _own_names()):
            return None
        path = layer_path(stem)
        return (path, SLOTS.get(tensor, tensor)) if path else None

    def can_read(self, keys: Iterable[str]) -> bool:
        return any(self.parse(key) for key in keys)

    def read(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> AdapterState:
        return build_adapter_state(group_by_layer(tensors, self.parse, lambda path, rank: float(rank)), metadata)

    def write(self, state: AdapterState) -> "tuple[dict[str, Tensor], dict[str, str]]":
        """Write one alpha for the whole file: diffusers ignores those of single layers, so ``up`` absorbs any
        difference.
        """
        import torch

        modules, family = with_one_alpha(state.modules), naming_family(state)
        tensors = {}
        for path, module in modules.items():
            stem = self._stem(path, family)
            if module.parametrization.ranked:  # LyCORIS asks for an alpha of layers without a rank too.
                tensors[f"{stem}.alpha"] = torch.tensor(module.alpha)
            tensors |= {f"{stem}.{name}": tensor for name, tensor in _spell_tensors(module).items()}
        # diffusers refuses a file that has both alphas and its own header
        metadata = {key: text for key, text in state.metadata.items() if key != PEFT_HEADER}
        return tensors, metadata | network_metadata(modules, family)

    def _stem(self, path: str, family: str) -> str:
        """Return the beginning of a layer's keys. Raises FormatError if they would not lead back to ``path``."""
        naming, (component, _, rest) = FAMILIES[family].adapter_naming, path.partition(".")
        spelt = naming.to_kohya(rest) if component == FAMILIES[family].denoiser else rest
        stem = f"{naming.prefixes.get(component)}_{spelt.replace('.', '_')}"
        if layer_path(stem) != path:
            raise FormatError(f"{path}: kohya's keys have no name for this layer; export with --format diffusers")
        return stem


def with_one_alpha(modules: Mapping[str, ModuleState]) -> Mapping[str, ModuleState]:
    """Return the same updates with the most common alpha everywhere; ``up`` of the other layers is rescaled.

    Only LoRA and DoRA layers are changed, which diffusers reads.
    """
    alphas = Counter(module.alpha for module in modules.values() if "up" in module.tensors)
    if len(alphas) < 2:
        return modules
    alpha = max((value for value in alphas if value), key=alphas.__getitem__)  # to divide by
    return {path: module.with_alpha(alpha) if "up" in module.tensors else module for path, module in modules.items()}


def _spell_tensors(module: ModuleState) -> "dict[str, Tensor]":
    """Return a layer's tensors by the endings of their keys. The shape of DoRA's lengths tells their axis."""
    import torch

    own = dict(module.tensors)
    found: dict[str, Tensor] = {}
    beside = [1] * (own["down"].ndim - 2) if "down" in own else []
    if "magnitude" in own:
        found["dora_scale"] = own.pop("magnitude").reshape(-1, 1, *beside)
    if "input_magnitude" in own:
        found["dora_scale"] = own.pop("input_magnitude").reshape(1, -1, *beside)
    for name in own.keys() & {"output_scale", "input_scale"}:
        return {"weight": own[name], "on_input": torch.tensor(int(name == "input_scale"))}
    return found | {NAMES.get(name, name): tensor for name, tensor in own.items()}
