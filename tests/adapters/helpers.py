"""Tiny bases with and without adapters, and what they compute."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from sdlora.adapters import live
from sdlora.adapters.base import AdapterState, ModuleState
from sdlora.adapters.lora import Lora
from tests.tiny import tiny_models

TEXT_WIDTH = 16


@cache
def _parts() -> dict[str, Any]:
    return tiny_models()


def tiny_parts() -> dict[str, Any]:
    """Every component of a tiny SD 1.x pipeline, fresh, with the same weights each time."""
    return copy.deepcopy(_parts())


def tiny_base() -> dict[str, nn.Module]:
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


def distance(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    """The largest absolute difference."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@cache
def trained_state(seed: int = 1, **settings: Any) -> AdapterState:
    """An adapter for ``tiny_base`` with numbers in both of its tensors, as if trained. Shared: not to be changed."""
    models = tiny_base()
    Lora(**{"rank": 4, "alpha": 3.0} | settings).attach(models, "fresh", seed)
    state = live.read_state(models, "fresh")
    draw = torch.Generator().manual_seed(seed)
    modules = {
        path: ModuleState({"down": m.tensors["down"], "up": _noise(m.tensors["up"], draw)}, m.alpha)
        for path, m in state.modules.items()
    }
    return AdapterState("lora", modules)


def uneven(state: AdapterState, seed: int = 2) -> AdapterState:
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


def delta(module: ModuleState) -> torch.Tensor:
    """ΔW by the definition, one kernel position at a time: independent of PEFT and of the code under test."""
    down, up = module.tensors["down"], module.tensors["up"]
    product = torch.einsum("or,ri...->oi...", up.reshape(up.shape[:2]).double(), down.double())
    return (module.alpha / down.shape[0] * product).float()


def _noise(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=draw) * 0.2
