"""Merge several adapters into one."""

import json
from collections.abc import Mapping, Sequence

import torch

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.editing.low_rank import (
    Cut,
    delta_matrix,
    factorize_matrix,
    factorize_product,
    kernel_of,
    low_rank_product,
    weights_for,
)
from sdlora.errors import ConfigError, MismatchError
from sdlora.events import OnProgress, unwatched
from sdlora.formats.inspection import trigger_words

MERGED = "sdlora_merged"
"""Header entry with the merged adapters and their scales."""


def merge(
    adapters: Sequence[tuple[str, AdapterState, float]],
    cut: Cut | None = None,
    base: str = "",
    on_progress: OnProgress = unwatched,
) -> AdapterState:
    """Return one LoRA equivalent to ``adapters`` (name, state, scale) together: ΔW = Σ scale · ΔWᵢ.

    Without a ``cut`` the factors are concatenated, which is exact, and ranks add up; with one, each layer's sum is
    truncated by its singular values. LoHa, LoKr and full differences need a ``cut``; DoRA and (IA)³ also the ``base``,
    as their update depends on its weights. ``on_progress`` counts layers. Raises ConfigError, MismatchError,
    ModelError.
    """
    if not adapters:
        raise ConfigError("name at least one adapter to merge")
    cut = cut.check() if cut else None
    paths = list(dict.fromkeys(path for _, state, _ in adapters for path in state.modules))
    _require_alike(adapters)
    weights = weights_for(base, *(state for _, state, _ in adapters))
    merged: dict[str, ModuleState] = {}
    for number, path in enumerate(paths):
        parts = [(state.modules[path], scale) for _, state, scale in adapters if path in state.modules]
        merged[path] = _layer(path, parts, cut, weights(path))
        on_progress(number + 1, len(paths))
    return build_adapter_state(merged, _metadata(adapters))


def _require_alike(adapters: Sequence[tuple[str, AdapterState, float]]) -> None:
    """Raise MismatchError if two adapters name a layer of different sizes."""
    sizes: dict[tuple[str, str], tuple[int, str]] = {}
    for name, state, _ in adapters:
        for path, module in state.modules.items():
            for side, size in zip(("gives", "reads"), parametrizations.layer_size(module.tensors), strict=True):
                first, other = sizes.setdefault((path, side), (size, name)) if size else (None, name)
                if size != first:
                    raise MismatchError(
                        f"{name} {side} {size} numbers at {path}, {other} {first}: they are for different bases"
                    )


def _layer(
    path: str, parts: Sequence[tuple[ModuleState, float]], cut: Cut | None, weight: torch.Tensor | None
) -> ModuleState:
    kernel = _kernel(path, parts, weight)
    pairs = [
        pair and (scale * pair[0], pair[1])
        for pair, scale in ((low_rank_product(module), scale) for module, scale in parts)
    ]
    products = [pair for pair in pairs if pair]
    if len(products) < len(parts):
        if cut is None:
            odd = next(module.method for (module, _), pair in zip(parts, pairs, strict=True) if not pair)
            raise ConfigError(f"{path}: {odd} has no factors to put side by side; give a rank or a share of energy")
        found = factorize_matrix(_sum(path, parts, weight))
        return found.module(cut.parts(found.values), kernel)
    up, down = torch.cat([up for up, _ in products], dim=1), torch.cat([down for _, down in products])
    if cut:
        found = factorize_product(up, down)
        return found.module(cut.parts(found.values), kernel)
    if kernel:
        down, up = down.reshape(len(down), -1, *kernel), up[:, :, None, None]
    return ModuleState({"down": down, "up": up}, float(len(down)))


def _sum(path: str, parts: Sequence[tuple[ModuleState, float]], weight: torch.Tensor | None) -> torch.Tensor:
    total, *rest = (scale * delta_matrix(path, module, weight) for module, scale in parts)
    for part in rest:
        total += part
    return total


def _kernel(path: str, parts: Sequence[tuple[ModuleState, float]], weight: torch.Tensor | None) -> tuple[int, ...]:
    if weight is not None:
        return tuple(weight.shape[2:])
    return next((kernel for module, _ in parts if (kernel := kernel_of(path, module))), ())


def _metadata(adapters: Sequence[tuple[str, AdapterState, float]]) -> dict[str, str]:
    """Return the entries that all headers share, their trigger words together, and what was merged."""
    headers: list[Mapping[str, str]] = [state.metadata for _, state, _ in adapters]
    listed = [{"name": name, "scale": scale} for name, _, scale in adapters]
    common = {key: text for key, text in headers[0].items() if all(other.get(key) == text for other in headers)}
    common.pop(MERGED, None)
    words = dict.fromkeys(word for header in headers for word in trigger_words(header))
    triggers = {"modelspec.trigger_phrase": ", ".join(words)} if words else {}
    return common | triggers | {MERGED: json.dumps(listed, ensure_ascii=False)}
