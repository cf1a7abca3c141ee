"""Tiny bases with and without adapters, and what they compute."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from sdlora.adapters import METHODS, attach
from sdlora.adapters.lora import Lora
from sdlora.adapters.state import AdapterState, ModuleState
from tests.support.tiny_models import tiny_models

TEXT_WIDTH = 16


def adapter_parameters(models: attach.Models, name: str) -> list[nn.Parameter]:
    """Return the parameters of adapter ``name``, layer by layer."""
    return [parameter for _, layer in attach.attached_layers(models, name) for parameter in layer.tensors.values()]


@cache
def _parts() -> dict[str, Any]:
    return tiny_models()


def tiny_components() -> dict[str, Any]:
    """Every component of a tiny SD 1.x pipeline, fresh, with the same weights each time."""
    return copy.deepcopy(_parts())


def tiny_networks() -> dict[str, nn.Module]:
    """UNet and text encoder of the same."""
    return {name: copy.deepcopy(_parts()[name]) for name in ("unet", "text_encoder")}


@torch.no_grad()
def outputs(models: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's prediction and the text encoder's hidden states for fixed inputs."""
    draw = torch.Generator().manual_seed(0)
    dtype = next(models["unet"].parameters()).dtype
    latents, text = (torch.randn(shape, generator=draw).to(dtype) for shape in ((2, 4, 8, 8), (2, 77, TEXT_WIDTH)))
    ids = torch.randint(0, 500, (2, 77), generator=draw)
    return models["unet"](latents, torch.tensor([10, 700]), text).sample, models["text_encoder"](ids)[0]


def max_difference(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    """The largest absolute difference."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def all_equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@cache
def trained_state(seed: int = 1, **settings: Any) -> AdapterState:
    """An adapter for ``tiny_base`` with numbers in both of its tensors, as if trained. Shared: not to be changed."""
    models = tiny_networks()
    Lora(**{"rank": 4, "alpha": 3.0} | settings).attach(models, "fresh", seed)
    state = attach.read_state(models, "fresh")
    draw = torch.Generator().manual_seed(seed)
    modules = {
        path: ModuleState({"down": m.tensors["down"], "up": _noise(m.tensors["up"], draw)}, m.alpha)
        for path, m in state.modules.items()
    }
    return AdapterState("lora", modules)


METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 3.0},
    "dora": {"rank": 4, "alpha": 3.0},
    "loha": {"rank": 3, "alpha": 2.0},
    "lokr": {"rank": 2, "alpha": 3.0, "factor": 2},
    "ia3": {},
}
"""Settings that show what each method is: of LoKr, some layers have a low-rank factor and some have not."""


@cache
def random_adapter(method: str, seed: int = 1, targets: str = "linear+conv") -> AdapterState:
    """An adapter of any method for ``tiny_base``, with numbers in all of its tensors. Shared: not to be changed."""
    models = tiny_networks()
    METHODS[method](**METHOD_SETTINGS[method] | {"targets": targets}).attach(models, "fresh", seed)
    state = attach.read_state(models, "fresh")
    draw = torch.Generator().manual_seed(seed)
    modules = {
        path: ModuleState({name: t + _noise(t, draw) for name, t in m.tensors.items()}, m.alpha)
        for path, m in state.modules.items()
    }
    return AdapterState(method, modules)


def reference_weight(module: ModuleState, weight: torch.Tensor) -> torch.Tensor:
    """W' of one layer by the methods' papers, in float64: independent of PEFT and of the code under test."""
    t = {name: tensor.double() for name, tensor in module.tensors.items()}
    base = weight.double()
    flat = base.flatten(1)
    if "output_scale" in t:
        return base + (flat * t["output_scale"].flatten()[:, None]).reshape(base.shape)
    if "input_scale" in t:
        return base + torch.einsum("oi...,i->oi...", base, t["input_scale"].flatten())
    if "diff" in t:
        return base + t["diff"].reshape(base.shape)
    if "hada_w1_a" in t:
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return base + (module.alpha / len(t["hada_w1_b"]) * product).reshape(base.shape)
    if "lokr_w1" in t:
        ranked = "lokr_w2_a" in t
        second = t["lokr_w2_a"] @ t["lokr_w2_b"] if ranked else t["lokr_w2"].flatten(1)
        first = t["lokr_w1"]
        blocks = [torch.cat([value * second for value in row], dim=1) for row in first]
        scale = module.alpha / len(t["lokr_w2_b"]) if ranked else 1.0
        return base + scale * torch.cat(blocks).reshape(base.shape)
    changed = base + reference_delta(module).double().reshape(base.shape)
    if "magnitude" not in t:
        return changed
    rows = changed.flatten(1)
    return (rows / rows.pow(2).sum(1, keepdim=True).sqrt() * t["magnitude"][:, None]).reshape(base.shape)


def with_uneven_ranks(state: AdapterState, seed: int = 2) -> AdapterState:
    """The same with other ranks in every third layer, and other alphas in every fourth."""
    draw = torch.Generator().manual_seed(seed)
    modules = {}
    for number, (path, module) in enumerate(state.modules.items()):
        down, up = module.tensors["down"], module.tensors["up"]
        if number % 3 == 0:
            down, up = down.new_zeros(6, *down.shape[1:]), up.new_zeros(up.shape[0], 6, *up.shape[2:])
            down, up = _noise(down, draw), _noise(up, draw)
        modules[path] = ModuleState({"down": down, "up": up}, 0.7 if number % 4 == 0 else module.alpha)
    return AdapterState(state.method, modules, state.metadata)


def reference_delta(module: ModuleState) -> torch.Tensor:
    """ΔW by the definition, one kernel position at a time: independent of PEFT and of the code under test."""
    down, up = module.tensors["down"], module.tensors["up"]
    product = torch.einsum("or,ri...->oi...", up.reshape(up.shape[:2]).double(), down.double())
    return (module.alpha / down.shape[0] * product).float()


def _noise(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=draw) * 0.2


UNET_PATHS = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_{part}" for part in "qkv"]
TEXT_PATHS = ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
TWO_STEPS = {"steps": 2, "seed": 7}


def random_lora(paths=(*UNET_PATHS, *TEXT_PATHS), seed=1, **metadata):
    """A strong random adapter of rank 2 for 16-wide layers."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path in paths:
        tensors = {"down": torch.randn(2, 16, generator=generator), "up": torch.randn(16, 2, generator=generator)}
        modules[path] = ModuleState(tensors, alpha=2.0)
    return AdapterState("lora", modules, metadata)
