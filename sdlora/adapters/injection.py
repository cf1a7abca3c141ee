"""Adapters put into live models: each of a layer's tensors into the adapter layer of its method."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sdlora.adapters import parametrizations, stacked_lora
from sdlora.adapters.adapter_layers import LORA, AdapterLayer, make_dora
from sdlora.adapters.state import ModuleState


def inject(model: nn.Module, modules: Mapping[str, ModuleState], key: str, dropout: float) -> None:
    """Wrap the layers at the model's own paths in ``modules``, and give them an adapter of these tensors.

    Its parameters are float32, frozen, and on the base layer's device.
    """
    low_rank: dict[str, ModuleState] = {}
    for path, module in modules.items():
        if "input_magnitude" in module.tensors:
            weight = _base_layer(model, path).weight.data
            module = ModuleState({"diff": parametrizations.delta_weight(module.tensors, module.scale, weight)})
        if kind := module.parametrization.layer_class(_base_layer(model, path)):
            _inject_adapter_layer(model, path, key, module, kind)
        else:
            low_rank[path] = _merge_tucker(module)
    if not low_rank:
        return
    _inject_lora(model, {path: (module.rank or 1, module.alpha) for path, module in low_rank.items()}, key, dropout)
    for path, module in low_rank.items():
        host = lora_layer_at(model, path)
        stacked_lora.use_stacked_lora(host)
        device = host.get_base_layer().weight.device
        own = {name: tensor.detach().to(device, torch.float32, copy=True) for name, tensor in module.tensors.items()}
        for name in ("down", "up"):
            layer = getattr(host, LORA[name])[key]
            layer.weight = nn.Parameter(own[name].reshape(layer.weight.shape).contiguous(), requires_grad=False)
        if "magnitude" in own:
            make_dora(host, key, own["magnitude"].flatten())


def _base_layer(model: nn.Module, path: str) -> Any:
    """Base layer at a model's own ``path``, below any adapter layers."""
    layer: Any = model.get_submodule(path)
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def lora_layer_at(model: nn.Module, path: str) -> Any:
    """PEFT's LoRA layer at a model's own ``path``."""
    host: Any = model.get_submodule(path)
    while isinstance(host, AdapterLayer):
        host = host.base_layer
    return host


def _merge_tucker(module: ModuleState) -> ModuleState:
    """A Tucker form's inner two tensors as one: the same update."""
    if "mid" not in module.tensors:
        return module
    rest = {name: tensor for name, tensor in module.tensors.items() if name != "mid"}
    inner = torch.einsum("pq...,qi->pi...", module.tensors["mid"].float(), module.tensors["down"].float().flatten(1))
    return replace(module, tensors={**rest, "down": inner})


def _inject_adapter_layer(model: nn.Module, path: str, key: str, module: ModuleState, kind: type[AdapterLayer]) -> None:
    """Add an adapter to the layer of its ``kind`` at a model's own ``path``, or to a new one around what is there."""
    parent, _, child = path.rpartition(".")
    top: Any = getattr(model.get_submodule(parent), child)
    inner: Any = top
    while isinstance(inner, BaseTunerLayer):
        if isinstance(inner, kind):
            return inner.add_adapter(key, module)
        inner = getattr(inner, "base_layer")  # noqa: B009 - PEFT declares it on no base class
    host: Any = kind(top)  # type: ignore[call-arg]
    host.add_adapter(key, module)  # Only then into the tree: a failure leaves it as it was.
    setattr(model.get_submodule(parent), child, host)


@contextmanager
def _innermost(model: nn.Module, paths: list[str]) -> Iterator[None]:
    """The hosts of other methods at ``paths`` out of the way: PEFT's LoRA layers wrap a base layer alone."""
    away = []
    for path in paths:
        parent, _, child = path.rpartition(".")
        holder: Any = model.get_submodule(parent)
        top = inner = getattr(holder, child)
        while isinstance(inner, AdapterLayer):
            lowest, inner = inner, inner.base_layer
        if inner is not top:
            away.append((holder, child, top, lowest))
            setattr(holder, child, inner)
    try:
        yield
    finally:
        for holder, child, top, lowest in away:
            lowest.base_layer = getattr(holder, child)
            setattr(holder, child, top)


def _inject_lora(model: nn.Module, ranks: Mapping[str, tuple[int, float]], key: str, dropout: float) -> None:
    """Have PEFT wrap the layers at the model's own paths in ``ranks``; their tensors are left on the meta device."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ranks), lora_dropout=dropout)  # type: ignore[arg-type]
    known = getattr(model, "peft_config", {})
    with _innermost(model, list(ranks)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, key, low_cpu_mem_usage=True)
    model.peft_config = known | model.peft_config  # type: ignore[operator, assignment]
    with torch.device("meta"):  # one by one: PEFT's rank_pattern takes seconds where every layer has a rank of its own
        for path, value in ranks.items():
            if value != (rank, alpha):
                host = lora_layer_at(model, path)
                host.update_layer(key, value[0], lora_alpha=value[1], config=config)
