"""Adapters inside live models: put in, read out, scale, mix, fuse, take out.

``models`` is always a mapping of components to modules (``{"unet": ..., "text_encoder": ...}``), and
``name`` one adapter's name in them. PEFT's layers do the mathematics; each wraps one base layer (its
*host*) and holds every adapter of that layer. A host that loses its last adapter is unwrapped, so
that a base whose adapters are all removed is the very module tree that it was.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sdlora.adapters.base import AdapterState, ModuleState, Scale
from sdlora.adapters.fit import require_fit
from sdlora.adapters.targets import classic_prefix, matches, nearest
from sdlora.errors import ConfigError, MismatchError

Models = Mapping[str, nn.Module]

TENSORS = {"lora": {"down": "lora_A", "up": "lora_B"}}
"""By method: the neutral names of a layer's tensors, and where PEFT keeps them."""

_FUSED = "_sdlora_fused"


class AdapterSize(NamedTuple):
    """How large an adapter is."""

    modules: int
    parameters: int
    share: float
    """Its parameters over all parameters of the models that it is in: 0 to 1."""


@dataclass(frozen=True)
class Layer:
    """One adapter's part of one host."""

    host: Any
    key: str

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The layer's own parameters by their neutral names: ``down`` (rank, in, ...), ``up`` (out, rank, ...)."""
        return {neutral: getattr(self.host, peft)[self.key].weight for neutral, peft in TENSORS["lora"].items()}

    @property
    def alpha(self) -> float:
        return float(self.host.lora_alpha[self.key])

    @torch.no_grad()
    def set(self, **tensors: torch.Tensor) -> None:
        """Copy values into the parameters in place, so that an optimizer's hold on them stays good."""
        for neutral, parameter in self.tensors.items():
            parameter.copy_(tensors[neutral].reshape(parameter.shape))


def attached(models: Models) -> list[str]:
    """The names of the adapters in ``models``, each once, in no particular order."""
    return list(dict.fromkeys(_name(key) for _, host in _hosts(models) for key in host.scaling))


def layers(models: Models, name: str) -> list[tuple[str, Layer]]:
    """(classic path, layer) of adapter ``name``. Raises ConfigError if there is none of that name."""
    key = _key(name)
    found = [(path, Layer(host, key)) for path, host in _hosts(models) if key in host.scaling]
    if not found:
        raise ConfigError(f"no adapter {name!r} is loaded; there are {', '.join(attached(models)) or 'none'}")
    return found


def parameters(models: Models, name: str) -> list[nn.Parameter]:
    """The adapter's own parameters, layer by layer. Pass one component's model alone to get that one's.

    Raises ConfigError if there is none of that name.
    """
    return [parameter for _, layer in layers(models, name) for parameter in layer.tensors.values()]


def size(models: Models, name: str) -> AdapterSize:
    """Counts of adapter ``name``: its layers, its parameters, and their share of the models that it is in.

    Raises ConfigError if there is none of that name.
    """
    own = layers(models, name)
    count = sum(parameter.numel() for _, layer in own for parameter in layer.tensors.values())
    components = {path.split(".")[0] for path, _ in own}
    return AdapterSize(len(own), count, count / sum(p.numel() for c in components for p in models[c].parameters()))


def add_layers(models: Models, ranks: Mapping[str, tuple[int, float]], name: str, dropout: float = 0.0) -> None:
    """Give the layers at the classic paths in ``ranks`` (path -> rank, alpha) an adapter whose tensors are zero.

    Its parameters are float32, frozen, and on the base layer's device; it is active at scale 1, and
    what else is attached stays as it is. Raises ConfigError if ``name`` is taken.
    """
    if name in attached(models):
        raise ConfigError(f"an adapter {name!r} is already loaded; remove it or take another name")
    active = {host: list(host.active_adapters) for _, host in _hosts(models)}
    try:
        for component, model in models.items():
            prefix = f"{component}.{classic_prefix(model)}"
            own = {path.removeprefix(prefix): value for path, value in ranks.items() if path.startswith(prefix)}
            if own:
                _inject(model, own, _key(name), dropout)
        for _, layer in layers(models, name):
            _materialise(layer)
            active.setdefault(layer.host, []).append(layer.key)
    except BaseException:
        if name in attached(models):
            remove(models, name)
        raise
    finally:
        for host, keys in active.items():
            _activate(host, [key for key in keys if key in host.scaling])


def read_state(models: Models, name: str, metadata: Mapping[str, str] | None = None) -> AdapterState:
    """Adapter ``name`` as it is now: detached float32 copies on the CPU, and its alphas."""
    modules = {
        path: ModuleState(
            {neutral: tensor.detach().to("cpu", torch.float32, copy=True) for neutral, tensor in layer.tensors.items()},
            layer.alpha,
        )
        for path, layer in layers(models, name)
    }
    return AdapterState("lora", modules, dict(metadata or {}))


def load_state(models: Models, state: AdapterState, name: str) -> None:
    """Put ``state`` into ``models`` as adapter ``name``: frozen, active at scale 1, with exactly its layers and ranks.

    Raises MismatchError, naming both shapes, if a layer is missing or differs; then nothing is attached.
    """
    require_fit(models, state)
    add_layers(models, {path: (module.rank, module.alpha) for path, module in state.modules.items()}, name)
    for path, layer in layers(models, name):
        layer.set(**state.modules[path].tensors)


def assign_state(models: Models, state: AdapterState, name: str) -> None:
    """Copy ``state`` into adapter ``name``, which has its layers already: to resume, or to continue from a file.

    The parameters stay the same objects. Where alphas differ, ``up`` is scaled so that ΔW is the state's.
    Raises MismatchError if layers or ranks differ, before anything changes.
    """
    own = dict(layers(models, name))
    require_fit(models, state)
    differences = {"only in the file": state.modules.keys() - own, "not in the file": own.keys() - state.modules.keys()}
    for kind, odd in differences.items():
        if odd:
            remedy = "make adapter.targets and adapter.text_encoder match it"
            raise MismatchError(f"{len(odd)} layers are {kind}, such as {min(odd)}; {remedy}")
    for path, layer in own.items():
        theirs, ours = state.modules[path].rank, layer.tensors["down"].shape[0]
        if theirs != ours:
            raise MismatchError(f"{path}: the file has rank {theirs}, the settings {ours}; set adapter.rank = {theirs}")
    for path, layer in own.items():
        module = state.modules[path]
        layer.set(down=module.tensors["down"], up=module.tensors["up"] * (module.alpha / layer.alpha))


def remove(models: Models, name: str) -> None:
    """Take adapter ``name`` out. Raises ConfigError if there is none of that name."""
    for path, layer in layers(models, name):
        host = layer.host
        _activate(host, [key for key in host.active_adapters if key != layer.key])
        host.delete_adapter(layer.key)
        if not host.scaling:
            _replace(models, path, host.base_layer)
    for model in models.values():
        configs: dict[str, Any] = getattr(model, "peft_config", {})
        if configs.pop(_key(name), None) and not configs:
            delattr(model, "peft_config")


class PerSample:
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
    values: dict[str, list[dict[str, float]]] = {}
    for name in dict.fromkeys(name for scales in samples for name in scales):
        paths = [path for path, _ in layers(models, name)]
        values[_key(name)] = [_by_path(paths, scales.get(name, 0.0)) for scales in samples]
    for path, host in _hosts(models):
        here = {key: [by_path[path] for by_path in each] for key, each in values.items() if key in host.scaling}
        for key, scales in here.items():
            each = [scale * host.lora_alpha[key] / host.r[key] for scale in scales]
            host.scaling[key] = each[0] if len(set(each)) < 2 else PerSample(each, host.weight.device)
        _activate(host, [key for key, scales in here.items() if any(scales)])


@contextmanager
def scaled(models: Models, *samples: Mapping[str, Scale]) -> Iterator[None]:
    """``set_scales`` for the time of a ``with`` block; afterwards all is as it was, a training adapter too."""
    before = [(host, list(host.active_adapters), dict(host.scaling)) for _, host in _hosts(models)]
    try:
        set_scales(models, *samples)
        yield
    finally:
        for host, active, scaling in before:
            host.scaling.update((key, value) for key, value in scaling.items() if key in host.scaling)
            _activate(host, [key for key in active if key in host.scaling])


class Fused:
    """Adapters folded into the base's weights, at no cost per step, until ``restore`` or the end of a ``with`` block.

    Meanwhile the hosts are out of the module tree, and every other function here refuses these models.
    """

    def __init__(self, models: Models, folded: list[tuple[str, Any, torch.Tensor]]) -> None:
        self._models = models
        self._kept = [(path, host, host.base_layer.weight.data) for path, host, _ in folded]
        for path, host, weight in folded:
            host.base_layer.weight.data = weight
            _replace(models, path, host.base_layer)
        for model in models.values():
            setattr(model, _FUSED, True)

    def restore(self) -> None:
        """Put the kept weights back, bit for bit, and the adapters as they were before; a second call does nothing."""
        for path, host, weight in self._kept:
            base = host.base_layer
            base.weight.data = weight.to(base.weight.device)
            _replace(self._models, path, host.to(base.weight.device).train(base.training))
        for model in self._models.values():
            delattr(model, _FUSED)
        self._models, self._kept = {}, []

    def __enter__(self) -> "Fused":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


@torch.no_grad()
def fuse(models: Models, scales: Mapping[str, Scale]) -> Fused:
    """Fold the adapters in ``scales`` into the base's weights, in float32, rounded once to the base's type.

    The weights replaced are kept, not computed back. Raises what ``set_scales`` raises, and ConfigError
    for a quantised base, before anything changes.
    """
    folded = []
    with scaled(models, scales):
        for path, host in _hosts(models):
            weight = host.base_layer.weight.data
            if not weight.is_floating_point():
                raise ConfigError(f"{path}: a quantised base takes no adapters into its weights; do not fuse them")
            deltas = [host.get_delta_weight(key) for key in host.active_adapters]
            folded.append((path, host, sum(deltas, weight.float()).to(weight.dtype) if deltas else weight))
    return Fused(models, folded)


def _by_path(paths: list[str], scale: Scale) -> dict[str, float]:
    """The scale of each of an adapter's layers."""
    table = scale if isinstance(scale, Mapping) else {"*": scale}
    for pattern, value in table.items():
        if not math.isfinite(value):
            raise ConfigError(f"scale {value} is no number to multiply by; take one such as 0.8")
        if pattern != "*" and not any(matches(path, pattern) for path in paths):
            raise ConfigError(f"scale of {pattern!r}: the adapter has no such layer; {nearest(pattern, paths)}")
    longest_first = sorted(table, key=len, reverse=True)
    return {path: next((float(table[p]) for p in longest_first if matches(path, p)), 1.0) for path in paths}


def _inject(model: nn.Module, ranks: Mapping[str, tuple[int, float]], key: str, dropout: float) -> None:
    """Have PEFT wrap the layers at the model's own paths in ``ranks``; their tensors are left on the meta device."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ranks), lora_dropout=dropout)  # type: ignore[arg-type]
    known = getattr(model, "peft_config", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, key, low_cpu_mem_usage=True)
    model.peft_config = known | model.peft_config  # type: ignore[operator, assignment]
    with torch.device("meta"):  # one by one: PEFT's rank_pattern takes seconds where every layer has a rank of its own
        for path, value in ranks.items():
            if value != (rank, alpha):
                host: Any = model.get_submodule(path)
                host.update_layer(key, value[0], lora_alpha=value[1], config=config)


def _materialise(layer: Layer) -> None:
    """Give a layer fresh from PEFT its parameters: zero, float32, frozen, where the base layer is."""
    base = layer.host.get_base_layer()
    for peft in TENSORS["lora"].values():
        module = getattr(layer.host, peft)[layer.key]
        zeros = torch.zeros(module.weight.shape, device=base.weight.device)
        module.weight = nn.Parameter(zeros, requires_grad=False)
    layer.host.train(base.training)


def _activate(host: Any, keys: list[str]) -> None:
    """Make ``keys`` the host's active adapters. PEFT would also decide what trains: that is put back."""
    if list(host.active_adapters) == keys:
        return
    flags = [(parameter, parameter.requires_grad) for parameter in host.parameters()]
    host.set_adapter(keys, inference_mode=True)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _hosts(models: Models) -> Iterator[tuple[str, Any]]:
    """(classic path, PEFT layer) of every layer that carries adapters."""
    for component, model in models.items():
        if hasattr(model, _FUSED):
            raise RuntimeError(f"adapters are fused into the {component}: restore it first")
        prefix = f"{component}.{classic_prefix(model)}"
        for path, module in model.named_modules():
            if isinstance(module, BaseTunerLayer):
                yield prefix + path, module


def _replace(models: Models, path: str, module: nn.Module) -> None:
    """Put ``module`` where the classic ``path`` leads."""
    component, _, rest = path.partition(".")
    parent, _, child = rest.removeprefix(classic_prefix(models[component])).rpartition(".")
    setattr(models[component].get_submodule(parent), child, module)


def _key(name: str) -> str:
    """The name inside PEFT, which takes neither dots nor what its containers or the models call their own parts."""
    return "@" + quote(name, safe=" ").replace(".", "%2E")


def _name(key: str) -> str:
    return unquote(key.removeprefix("@"))
