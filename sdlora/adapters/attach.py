"""Adapters inside live models: put in, read out, scale, mix, take out; ``fused`` folds them into the weights.

``models`` is always a mapping of components to modules (``{"text_encoder": ...}``), and ``name`` one adapter's name in
them. PEFT's layers do the mathematics (``adapter_layers``): each wraps one base layer, or another adapter layer of it,
and holds every adapter of its kind. One that loses its last adapter is unwrapped, so that a base whose adapters are all
removed is the very module tree that it was.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import torch
from torch import nn

from sdlora.adapters.adapter_layers import AdapterLayer
from sdlora.adapters.compatibility import require_compatible, without_trailing_ones
from sdlora.adapters.state import AdapterState, ModuleState, Scale, build_adapter_state
from sdlora.adapters.targets import classic_prefix, matches, nearest_paths_hint
from sdlora.errors import ConfigError, MismatchError

Models = Mapping[str, nn.Module]

FUSED = "_sdlora_fused"
"""Marks models whose adapters are in their weights (``fused``)."""


class AdapterSize(NamedTuple):
    """Size of an adapter."""

    modules: int
    parameters: int
    share: float
    """Its parameters over all parameters of the models that it is in: 0 to 1."""


@dataclass(frozen=True)
class AttachedLayer:
    """One adapter's part of one adapter layer."""

    adapter_layer: Any
    key: str

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The layer's own parameters by their neutral names (``parametrizations``)."""
        found = {name: self.adapter_layer.params(name) for name in self.adapter_layer.adapter_layer_names}
        return {name: own[self.key] for name, own in found.items() if self.key in own}

    @property
    def alpha(self) -> float:
        return float(getattr(self.adapter_layer, "alpha", {}).get(self.key, 1.0))

    @property
    def state(self) -> ModuleState:
        """The parameters themselves, and alpha."""
        return ModuleState(self.tensors, self.alpha)

    @property
    def scaling_unit(self) -> float:
        """Value that the layer stores for a scale of 1."""
        return self.adapter_layer.units.get(self.key, 1.0)

    @property
    def scale(self) -> float:
        """Current scale; valid only if it is not per-sample."""
        return self.adapter_layer.scales[self.key] / self.scaling_unit if self.scaling_unit else 0.0

    def set_scale(self, scales: Sequence[float]) -> None:
        """Set one scale, or one for each sample."""
        each = [scale * self.scaling_unit for scale in scales]
        device = self.adapter_layer.get_base_layer().weight.device
        self.adapter_layer.scales[self.key] = each[0] if len(set(each)) < 2 else PerSampleScale(each, device)

    @torch.no_grad()
    def assign(self, **tensors: torch.Tensor) -> None:
        """Copy values into the parameters in place, so that an optimizer's hold on them stays good."""
        for neutral, parameter in self.tensors.items():
            parameter.copy_(tensors[neutral].reshape(parameter.shape))


def attached_adapters(models: Models) -> list[str]:
    """The names of the adapters in ``models``, each once, in no particular order."""
    keys = dict.fromkeys(key for _, adapter_layer in adapter_layers_in(models) for key in adapter_layer.scales)
    return [unquote(key.removeprefix("@")) for key in keys]


def attached_layers(models: Models, name: str) -> list[tuple[str, AttachedLayer]]:
    """(classic path, layer) of adapter ``name``. Raises ConfigError if there is none of that name."""
    key = peft_key(name)
    found = [
        (path, AttachedLayer(adapter_layer, key))
        for path, adapter_layer in adapter_layers_in(models)
        if key in adapter_layer.scales
    ]
    if not found:
        raise _no_adapter(models, name)
    return found


def _no_adapter(models: Models, name: str) -> ConfigError:
    return ConfigError(f"no adapter {name!r} is loaded; there are {', '.join(attached_adapters(models)) or 'none'}")


def size_of(models: Models, parameters: Mapping[str, Sequence[nn.Parameter]]) -> AdapterSize:
    """Counts of ``parameters`` by the classic path of their layer, in ``models``."""
    count = sum(parameter.numel() for own in parameters.values() for parameter in own)
    components = {path.partition(".")[0] for path in parameters}
    total = sum(count_parameters(models[component]) for component in components)
    return AdapterSize(len(parameters), count, count / total)


def count_parameters(model: nn.Module) -> int:
    """Count the numbers of a model; those of layers that keep theirs in few bits count as the weights they are."""
    few: list[Any] = [module for module in model.modules() if hasattr(module, "quantized")]
    return sum(p.numel() for p in model.parameters()) + sum(int(m.in_features * m.out_features) for m in few)


def attach_modules(models: Models, modules: Mapping[str, ModuleState], name: str, dropout: float = 0.0) -> None:
    """Give the layers at the classic paths in ``modules`` an adapter of these tensors, which are copied.

    Its parameters are float32, frozen, and on the base layer's device; it is active at scale 1, and
    what else is attached stays as it is. Raises ConfigError if ``name`` is taken.
    """
    if name in attached_adapters(models):
        raise ConfigError(f"an adapter {name!r} is already loaded; remove it or take another name")
    active = {adapter_layer: list(adapter_layer.active_adapters) for _, adapter_layer in adapter_layers_in(models)}
    try:
        for component, model in models.items():
            prefix = f"{component}.{classic_prefix(model)}"
            own = {path.removeprefix(prefix): value for path, value in modules.items() if path.startswith(prefix)}
            for own_path, module in own.items():
                parent, _, child = own_path.rpartition(".")
                _inject(model.get_submodule(parent), child, peft_key(name), module, dropout)
        for _, layer in attached_layers(models, name):
            layer.adapter_layer.train(layer.adapter_layer.get_base_layer().training)
            active.setdefault(layer.adapter_layer, []).append(layer.key)
    except BaseException:
        if name in attached_adapters(models):
            remove_adapter(models, name)
        raise
    finally:
        for adapter_layer, keys in active.items():
            _activate(adapter_layer, [key for key in keys if key in adapter_layer.scales])


def _inject(parent: Any, child: str, key: str, module: ModuleState, dropout: float) -> None:
    """Add an adapter to the layer of its kind at ``child`` of ``parent``, or to a new one around what is there."""
    layers, base = [], getattr(parent, child)
    while isinstance(base, AdapterLayer):
        layers.append(base)
        base = base.base_layer
    if "input_magnitude" in module.tensors:
        module = ModuleState({"diff": module.delta_weight(base.weight.data)})
    kind = module.parametrization.layer_class(base)
    for layer in layers:
        if isinstance(layer, kind):
            return layer.add_adapter(key, module, dropout)
    if kind.innermost and layers:
        parent, child = layers[-1], "base_layer"
    layer = kind(getattr(parent, child))
    layer.add_adapter(key, module, dropout)  # Only then into the tree: a failure leaves it as it was.
    setattr(parent, child, layer)


def read_state(models: Models, name: str, metadata: Mapping[str, str] | None = None) -> AdapterState:
    """Adapter ``name`` as it is now: detached float32 copies on the CPU, and its alphas."""
    modules = {
        path: ModuleState(
            {neutral: tensor.detach().to("cpu", torch.float32, copy=True) for neutral, tensor in layer.tensors.items()},
            layer.alpha,
        )
        for path, layer in attached_layers(models, name)
    }
    return build_adapter_state(modules, metadata)


def load_state(models: Models, state: AdapterState, name: str) -> None:
    """Put ``state`` into ``models`` as adapter ``name``: frozen, active at scale 1, with exactly its layers and ranks.

    Raises MismatchError, naming both shapes, if a layer is missing or differs; then nothing is attached.
    """
    require_compatible(models, state)
    attach_modules(models, state.modules, name)


def assign_state(models: Models, state: AdapterState, name: str) -> None:
    """Copy ``state`` into adapter ``name``, which has its layers already: to resume, or to continue from a file.

    The parameters stay the same objects. Where alphas differ, a tensor is scaled so that ΔW is the state's.
    Raises MismatchError if layers, methods or ranks differ, before anything changes.
    """
    own = dict(attached_layers(models, name))
    require_compatible(models, state)
    differences = {"only in the file": state.modules.keys() - own, "not in the file": own.keys() - state.modules.keys()}
    for kind, odd in differences.items():
        if odd:
            remedy = "make adapter.targets and adapter.text_encoder match it"
            raise MismatchError(f"{len(odd)} layers are {kind}, such as {min(odd)}; {remedy}")
    for path, layer in own.items():
        _require_same_layout(path, state.modules[path], layer.state)
    for path, layer in own.items():
        layer.assign(**state.modules[path].with_alpha(layer.alpha).tensors)


def _require_same_layout(path: str, theirs: ModuleState, ours: ModuleState) -> None:
    """Raises MismatchError unless the tensors of one fit into those of the other."""
    if theirs.method != ours.method:
        remedy = f"set adapter.method = {theirs.method}" if theirs.method != "full" else "it cannot be trained on"
        raise MismatchError(f"{path}: the file has {theirs.method}, the settings {ours.method}; {remedy}")
    if theirs.rank != ours.rank:
        remedy = f"set adapter.rank = {theirs.rank}"
        raise MismatchError(f"{path}: the file has rank {theirs.rank}, the settings {ours.rank}; {remedy}")
    if theirs.tensors.keys() != ours.tensors.keys() or any(
        without_trailing_ones(tuple(tensor.shape)) != without_trailing_ones(tuple(ours.tensors[name].shape))
        for name, tensor in theirs.tensors.items()
    ):
        raise MismatchError(f"{path}: the file's {theirs.method} is laid out otherwise than the settings make it")


def remove_adapter(models: Models, name: str) -> None:
    """Take adapter ``name`` out. Raises ConfigError if there is none of that name."""
    for path, layer in attached_layers(models, name):
        adapter_layer = layer.adapter_layer
        _activate(adapter_layer, [key for key in adapter_layer.active_adapters if key != layer.key])
        adapter_layer.delete_adapter(layer.key)
        if not adapter_layer.scales:
            replace_layer(models, path, adapter_layer, adapter_layer.base_layer)


class PerSampleScale:
    """A scale for each sample of a batch: PEFT's layers multiply an adapter's output by it as they would by a number.

    A batch of k times as many samples is k copies one after the other: guidance's negative and positive half.
    """

    def __init__(self, scales: Sequence[float], device: torch.device) -> None:
        self.scales = torch.tensor(scales, device=device)

    def __rmul__(self, output: torch.Tensor) -> torch.Tensor:
        """``output`` (k * N, ...), each sample times its own scale."""
        copies = output.unflatten(0, (-1, len(self.scales)))
        return (copies * self.scales.view(-1, *[1] * (output.ndim - 1))).flatten(0, 1)


def set_scales(models: Models, *samples: Mapping[str, Scale]) -> None:
    """Make exactly the adapters in ``samples`` (name -> scale) active; nothing is loaded or copied.

    A scale may be negative. At 0, or not named, an adapter takes no part: outputs are then the base's
    own, bit for bit. What trains goes on training: no ``requires_grad`` changes.
    Of several ``samples``, sample i of every batch to come has the scales ``samples[i]``.
    Raises ConfigError for a name that is not attached, a scale that is not finite, or a key that names no layer.
    """
    found = list(adapter_layers_in(models))  # Once for all names: a walk over a denoiser takes milliseconds.
    values: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(name for scales in samples for name in scales):
        key = peft_key(name)
        paths = [path for path, adapter_layer in found if key in adapter_layer.scales]
        if not paths:
            raise _no_adapter(models, name)
        values[key] = [_scales_by_path(paths, scales.get(name, 0.0)) for scales in samples]
    for path, adapter_layer in found:
        here = {key: [by_path[path] for by_path in each] for key, each in values.items() if key in adapter_layer.scales}
        for key, scales in here.items():
            AttachedLayer(adapter_layer, key).set_scale(scales)
        _activate(adapter_layer, [key for key, scales in here.items() if any(scales)])


@contextmanager
def temporary_scales(models: Models, *samples: Mapping[str, Scale]) -> Iterator[None]:
    """``set_scales`` for the time of a ``with`` block; afterwards all is as it was, a training adapter too."""
    before = [
        (adapter_layer, list(adapter_layer.active_adapters), dict(adapter_layer.scales))
        for _, adapter_layer in adapter_layers_in(models)
    ]
    try:
        set_scales(models, *samples)
        yield
    finally:
        for adapter_layer, active, shares in before:
            now = adapter_layer.scales
            now.update((key, value) for key, value in shares.items() if key in now)
            _activate(adapter_layer, [key for key in active if key in now])


class DisabledAdapters:
    """A context, entered one time after another, in which no adapter of ``models`` takes part: the base's own
    outputs, bit for bit. ``temporary_scales`` does as much for any scales, but looks through all modules each time.
    """

    def __init__(self, models: Models) -> None:
        self.adapter_layers = [adapter_layer for _, adapter_layer in adapter_layers_in(models)]

    def __enter__(self) -> None:
        self._active = [adapter_layer._active_adapter for adapter_layer in self.adapter_layers]
        for adapter_layer in self.adapter_layers:
            adapter_layer._active_adapter = []

    def __exit__(self, *error: object) -> None:
        for adapter_layer, active in zip(self.adapter_layers, self._active, strict=True):
            adapter_layer._active_adapter = active


def _scales_by_path(paths: list[str], scale: Scale) -> dict[str, float]:
    """The scale of each of an adapter's layers."""
    table = scale if isinstance(scale, Mapping) else {"*": scale}
    for pattern, value in table.items():
        if not math.isfinite(value):
            raise ConfigError(f"scale {value} is no number to multiply by; take one such as 0.8")
        if pattern != "*" and not any(matches(path, pattern) for path in paths):
            raise ConfigError(
                f"scale of {pattern!r}: the adapter has no such layer; {nearest_paths_hint(pattern, paths)}"
            )
    longest_first = sorted(table, key=len, reverse=True)
    return {path: next((float(table[p]) for p in longest_first if matches(path, p)), 1.0) for path in paths}


def _activate(adapter_layer: Any, keys: list[str]) -> None:
    """Make ``keys`` the layer's active adapters. PEFT would also decide what trains: that is put back."""
    if list(adapter_layer.active_adapters) == keys:
        return
    flags = [(parameter, parameter.requires_grad) for parameter in adapter_layer.parameters()]
    adapter_layer.set_adapter(keys, inference_mode=True)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def adapter_layers_in(models: Models) -> Iterator[tuple[str, Any]]:
    """(classic path of the base layer, adapter layer) of every adapter layer; of several around one base layer, the
    outermost first.
    """
    for component, model in models.items():
        if hasattr(model, FUSED):
            raise RuntimeError(f"adapters are fused into the {component}: restore it first")
        prefix = f"{component}.{classic_prefix(model)}"
        for path, module in model.named_modules():
            if isinstance(module, AdapterLayer):
                yield prefix + path.replace(".base_layer", ""), module


def replace_layer(models: Models, path: str, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` where ``old`` stands among the adapter layers at the classic ``path``."""
    component, _, rest = path.partition(".")
    parent, _, child = rest.removeprefix(classic_prefix(models[component])).rpartition(".")
    holder: Any = models[component].get_submodule(parent)
    while getattr(holder, child) is not old:
        holder, child = getattr(holder, child), "base_layer"
    setattr(holder, child, new)


def peft_key(name: str) -> str:
    """The name inside PEFT, which takes neither dots nor what its containers or the models call their own parts."""
    return "@" + quote(name, safe=" ").replace(".", "%2E")
