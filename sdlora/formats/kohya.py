"""Keys of kohya's sd-scripts and LyCORIS: read by A1111, Forge, ComfyUI, InvokeAI and diffusers.

``lora_unet_<path with _ for .>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; the text encoder's prefix is
``lora_te``. SDXL's UNet uses its original names, its encoders ``lora_te1`` and ``lora_te2``. See networks/lora.py in
github.com/kohya-ss/sd-scripts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.errors import FormatError
from sdlora.families import sgm_names
from sdlora.formats.base import RAW, Slot, group_by_layer
from sdlora.formats.diffusers import classic
from sdlora.formats.infer_base import infer_family
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

ORIGINAL = tuple(f"lora_unet_{blocks}_" for blocks in ("input_blocks", "middle_block", "output_blocks"))
"""Prefixes that only keys of SDXL's UNet have."""

STEPS = [
    "down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in",
    "proj_out", "conv", "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "time_emb_proj", "time_embedding",
    "linear_1", "linear_2", "add_embedding", "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj",
    "v_proj", "out_proj", "mlp", "fc1", "fc2", "text_projection", *sgm_names.STEPS,
]  # fmt: skip
"""Every step of a module path except numbers. The file joins steps by ``_``, which some steps contain."""
_STEP = re.compile(rf"({'|'.join(sorted(STEPS, key=len, reverse=True))}|\d+)(?:_(?=.)|$)")


@dataclass(frozen=True)
class KeyNaming:
    """Names of the components of one kind of base in files."""

    prefixes: Mapping[str, str]
    """Component to prefix, for writing and reading."""
    aliases: Mapping[str, str]
    """Other prefixes that are read: prefix to component."""


KEY_NAMINGS = {
    # lora_te1: what diffusers' own converter writes for SD 1.x
    "sd": KeyNaming({"unet": "lora_unet", "text_encoder": "lora_te"}, {"lora_te1": "text_encoder"}),
    "sdxl": KeyNaming({"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, {}),
}


def _own_names() -> set[str]:
    """Ends of keys that are what they are called."""
    names = {name for own in parametrizations.parametrizations().values() for name in own.names}
    return names - RESPELT | {*RAW}


def dotted(name: str) -> str | None:
    """Convert ``down_blocks_0_attentions_1_proj_in`` to ``down_blocks.0.attentions.1.proj_in``; None if it is no known
    path.
    """
    steps, position = [], 0
    while position < len(name):
        step = _STEP.match(name, position)
        if step is None:
            return None
        steps.append(step[1])
        position = step.end()
    return ".".join(steps)


class Kohya:
    """kohya's keys for the components that ``KEY_NAMINGS`` names, each layer's alpha beside its ``down`` and ``up``."""

    name = "kohya"

    def __init__(self) -> None:
        self._components = {
            prefix: component
            for spelling in KEY_NAMINGS.values()
            for prefix, component in (*((p, c) for c, p in spelling.prefixes.items()), *spelling.aliases.items())
        }

    def parse(self, key: str) -> Slot | None:
        module, _, tensor = key.partition(".")
        prefix = next((prefix for prefix in self._components if module.startswith(f"{prefix}_")), None)
        if prefix is None or not (tensor in SLOTS or tensor in _own_names()):
            return None
        component, path = self._components[prefix], dotted(module.removeprefix(f"{prefix}_"))
        if path is None:
            return None
        # With transformers 5, LyCORIS leaves text_model out of its names.
        found = classic(f"{component}.{sgm_names.from_sgm(path) if component == 'unet' else path}")
        return (found, SLOTS.get(tensor, tensor)) if found else None

    def can_read(self, keys: Iterable[str]) -> bool:
        return any(self.parse(key) for key in keys)

    def read(self, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> AdapterState:
        return build_adapter_state(group_by_layer(tensors, self.parse, lambda path, rank: float(rank)), metadata)

    def write(self, state: AdapterState) -> "tuple[dict[str, Tensor], dict[str, str]]":
        """Write one alpha for the whole file: diffusers ignores those of single layers, so ``up`` absorbs any
        difference.
        """
        import torch

        modules, spelling = with_one_alpha(state.modules), "sdxl" if infer_family(state) == "sdxl" else "sd"
        tensors = {}
        for path, module in modules.items():
            stem = self._stem(path, spelling)
            if module.parametrization.ranked:  # LyCORIS asks for an alpha of layers without a rank too.
                tensors[f"{stem}.alpha"] = torch.tensor(module.alpha)
            tensors |= {f"{stem}.{name}": tensor for name, tensor in _spell_tensors(module).items()}
        # diffusers refuses a file that has both alphas and its own header
        metadata = {key: text for key, text in state.metadata.items() if key != PEFT_HEADER}
        return tensors, metadata | network_metadata(modules)

    def _stem(self, path: str, spelling: str) -> str:
        component, _, rest = path.partition(".")
        if spelling == "sdxl" and component == "unet":
            rest = sgm_names.to_sgm(rest) or rest
        stem = f"{KEY_NAMINGS[spelling].prefixes.get(component)}_{rest.replace('.', '_')}"
        if self.parse(f"{stem}.alpha") != (path, "alpha"):
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
