"""Adapters put into live models: each of a layer's tensors into the adapter layer of its method."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from sdlora.adapters import parametrizations
from sdlora.adapters.adapter_layers import AdapterLayer
from sdlora.adapters.state import ModuleState


def inject(model: nn.Module, modules: Mapping[str, ModuleState], key: str, dropout: float) -> None:
    """Wrap the layers at the model's own paths in ``modules``, and give them an adapter of these tensors.

    Its parameters are float32, frozen, and on the base layer's device.
    """
    for path, module in modules.items():
        parent, _, child = path.rpartition(".")
        _inject_layer(model.get_submodule(parent), child, key, module, dropout)


def _inject_layer(parent: Any, child: str, key: str, module: ModuleState, dropout: float) -> None:
    """Add an adapter to the layer of its kind at ``child`` of ``parent``, or to a new one around what is there."""
    layers, base = [], getattr(parent, child)
    while isinstance(base, AdapterLayer):
        layers.append(base)
        base = base.base_layer
    if "input_magnitude" in module.tensors:
        module = ModuleState({"diff": parametrizations.delta_weight(module.tensors, module.scale, base.weight.data)})
    kind = module.parametrization.layer_class(base)
    for layer in layers:
        if isinstance(layer, kind):
            return layer.add_adapter(key, module, dropout)
    if kind.innermost and layers:
        parent, child = layers[-1], "base_layer"
    layer = kind(getattr(parent, child))
    layer.add_adapter(key, module, dropout)  # Only then into the tree: a failure leaves it as it was.
    setattr(parent, child, layer)
