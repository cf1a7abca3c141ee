"""Merge several adapters into one."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from sdlora.adapters import parametrizations
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.editing.low_rank import Cut, Weights, delta_matrix, kernel_of, low_rank_product, weights_for
from sdlora.editing.merge_methods import METHODS, MergeOptions, Update
from sdlora.errors import ConfigError, MismatchError
from sdlora.events import OnProgress, unwatched
from sdlora.formats.inspection import trigger_words
from sdlora.seeds import derive

MERGED, MERGED_BY = "sdlora_merged", "sdlora_merge_method"
"""Header entries: the merged adapters with their scales; the method, its options, the cut, and the energy kept."""
SUM = MergeOptions()
"""The plain sum."""
Parts = Sequence[tuple[int, ModuleState, float]]
"""Adapters' parts of one layer: the number of the adapter, its tensors, its scale."""


class Merged(NamedTuple):
    """A LoRA made of several adapters, and the share of the squared norm of what was to be merged that the cut kept."""

    state: AdapterState
    kept: float


def merge(
    adapters: Sequence[tuple[str, AdapterState, float]],
    cut: Cut | None = None,
    base: str = "",
    on_progress: OnProgress = unwatched,
    options: MergeOptions = SUM,
) -> AdapterState:
    """Return ``merge_by`` without the share that was kept: with the defaults, one LoRA equivalent to all adapters."""
    return merge_by(options, adapters, cut, base, on_progress).state


def merge_by(
    options: MergeOptions,
    adapters: Sequence[tuple[str, AdapterState, float]],
    cut: Cut | None = None,
    base: str = "",
    on_progress: OnProgress = unwatched,
) -> Merged:
    """Return one LoRA made of ``adapters`` (name, state, scale) by a method of ``METHODS``: of sum ΔW = Σ scale · ΔWᵢ.

    Layers that only one of them changes are taken as they are. Without a ``cut`` factors are concatenated, which is
    exact, and ranks add up; with one, each layer is truncated by its singular values. LoHa, LoKr, full differences and
    methods with results of full rank need a ``cut``; DoRA and (IA)³ also the ``base``, as their update depends on its
    weights. ``on_progress`` counts layers. Raises ConfigError, MismatchError, ModelError.
    """
    if not adapters:
        raise ConfigError("name at least one adapter to merge")
    options, cut = options.check(), cut.check() if cut else None
    if cut is None and METHODS[options.method].full_rank:
        raise ConfigError(
            f"method = {options.method}: its result has no small factors; give a rank such as 32, or a share of energy"
        )
    paths = list(dict.fromkeys(path for _, state, _ in adapters for path in state.modules))
    require_alike([(name, state) for name, state, _ in adapters])
    weights = weights_for(base, *(state for _, state, _ in adapters))
    parts = {
        path: [(n, s.modules[path], scale) for n, (_, s, scale) in enumerate(adapters) if path in s.modules]
        for path in paths
    }
    sizes = _mean_sizes(parts, len(adapters), weights) if METHODS[options.method].compares_sizes else []
    merged: dict[str, ModuleState] = {}
    total = kept = 0.0
    for number, path in enumerate(paths):
        weight = weights(path)
        update = _combine(options, path, parts[path], sizes, weight, cut)
        merged[path], square, share = _as_lora(update, _kernel(path, parts[path], weight), cut)
        total, kept = total + square, kept + square * share
        on_progress(number + 1, len(paths))
    left = kept / total if total else 1.0
    return Merged(build_adapter_state(merged, _metadata(adapters, options, cut, left)), left)


def require_alike(adapters: Sequence[tuple[str, AdapterState]]) -> None:
    """Raise MismatchError if two adapters name a layer of different sizes."""
    sizes: dict[tuple[str, str], tuple[int, str]] = {}
    for name, state in adapters:
        for path, module in state.modules.items():
            for side, size in zip(("gives", "reads"), parametrizations.layer_size(module.tensors), strict=True):
                first, other = sizes.setdefault((path, side), (size, name)) if size else (None, name)
                if size != first:
                    raise MismatchError(
                        f"{name} {side} {size} numbers at {path}, {other} {first}: they are for different bases"
                    )


def _combine(
    options: MergeOptions,
    path: str,
    parts: Parts,
    sizes: Sequence[float],
    weight: torch.Tensor | None,
    cut: Cut | None,
) -> Update:
    """Return the update of one layer by the method, or that of the only adapter which has it."""
    updates = [_update(path, module, scale, weight) for _, module, scale in parts]
    if cut is None and (odd := [part for part, update in zip(parts, updates, strict=True) if update.down is None]):
        raise ConfigError(
            f"{path}: {odd[0][1].method} has no factors to put side by side; give a rank or a share of energy"
        )
    if len(updates) < 2:
        return updates[0]
    values = options.values()
    if "seed" in values:
        values["seed"] = derive(values["seed"], path)
    if sizes:
        values["sizes"] = [sizes[number] for number, _, _ in parts]
    return METHODS[options.method].combine(updates, **values)


def _update(path: str, module: ModuleState, scale: float, weight: torch.Tensor | None) -> Update:
    pair = low_rank_product(module)
    return Update(scale * pair[0], pair[1]) if pair else Update(scale * delta_matrix(path, module, weight))


def _as_lora(update: Update, kernel: tuple[int, ...], cut: Cut | None) -> tuple[ModuleState, float, float]:
    """Return the update as a LoRA, its squared norm, and the share of it that the cut kept; without a cut, 0 and 1."""
    if cut:
        found = update.factors()
        count = cut.parts(found.values)
        return found.module(count, kernel), float(found.values.square().sum()), found.kept(count)
    up, down = update.product()
    if kernel:
        down, up = down.reshape(len(down), -1, *kernel), up[:, :, None, None]
    return ModuleState({"down": down, "up": up}, float(len(down))), 0.0, 1.0


def _mean_sizes(parts: Mapping[str, Parts], adapters: int, weights: Weights) -> list[float]:
    """Return the mean absolute entry of each adapter's update over all its layers, a layer at a time."""
    sums, counts = [0.0] * adapters, [0] * adapters
    for path, layer in parts.items():
        for number, module, scale in layer:
            entries = _update(path, module, scale, weights(path)).matrix.abs()
            sums[number] += float(entries.sum(dtype=torch.float64))
            counts[number] += entries.numel()
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _kernel(path: str, parts: Parts, weight: torch.Tensor | None) -> tuple[int, ...]:
    if weight is not None:
        return tuple(weight.shape[2:])
    return next((kernel for _, module, _ in parts if (kernel := kernel_of(path, module))), ())


def _metadata(
    adapters: Sequence[tuple[str, AdapterState, float]], options: MergeOptions, cut: Cut | None, kept: float
) -> dict[str, str]:
    """Return the entries that all headers share, their trigger words together, and what was merged how."""
    headers: list[Mapping[str, str]] = [state.metadata for _, state, _ in adapters]
    listed = [{"name": name, "scale": scale} for name, _, scale in adapters]
    common = {key: text for key, text in headers[0].items() if all(other.get(key) == text for other in headers)}
    for key in (MERGED, MERGED_BY):
        common.pop(key, None)
    limits = {name: value for name, value in cut._asdict().items() if value is not None} if cut else {}
    method = {"method": options.method, **options.values(), **limits, "kept": round(kept, 6)}
    words = dict.fromkeys(word for header in headers for word in trigger_words(header))
    triggers = {"modelspec.trigger_phrase": ", ".join(words)} if words else {}
    return common | triggers | {MERGED: json.dumps(listed, ensure_ascii=False), MERGED_BY: json.dumps(method)}
