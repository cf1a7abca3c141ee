"""Adapters folded into the weights of live models, and taken out again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdlora.adapters import attach
from sdlora.adapters.state import Scale
from sdlora.errors import ConfigError


class FusedAdapters:
    """Adapters folded into the base's weights, at no cost per step, until ``restore`` or the end of a ``with`` block.

    Meanwhile the adapter layers are out of the module tree, and every other function here refuses these models.
    """

    def __init__(self, models: attach.Models, folded: Sequence[tuple[str, Any, Mapping[str, torch.Tensor]]]) -> None:
        self._models = models
        self._kept = []
        for path, adapter_layer, own in folded:
            base = adapter_layer.get_base_layer()
            self._kept.append((path, adapter_layer, {name: getattr(base, name).data for name in own}))
            _assign(base, own)
            attach.replace_layer(models, path, adapter_layer, base)
        for model in models.values():
            setattr(model, attach.FUSED, True)

    def restore(self) -> None:
        """Put the kept weights back, bit for bit, and the adapters as they were before; a second call does nothing."""
        for path, adapter_layer, kept in self._kept:
            base = adapter_layer.get_base_layer()
            _assign(base, {name: tensor.to(base.weight.device) for name, tensor in kept.items()})
            attach.replace_layer(self._models, path, base, adapter_layer.to(base.weight.device).train(base.training))
        for model in self._models.values():
            delattr(model, attach.FUSED)
        self._models, self._kept = {}, []

    def __enter__(self) -> "FusedAdapters":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


@torch.no_grad()
def fuse(models: attach.Models, scales: Mapping[str, Scale]) -> FusedAdapters:
    """Fold the adapters in ``scales`` into the base's weights, in float32, rounded once to the base's type.

    The weights replaced are kept, not computed back. Raises what ``set_scales`` raises, and ConfigError
    for a quantised base, before anything changes.
    """
    folded = []
    chains: dict[str, list[Any]] = {}
    with attach.temporary_scales(models, scales):
        for path, adapter_layer in attach.adapter_layers_in(models):  # The outermost of a chain first.
            chains.setdefault(path, []).append(adapter_layer)
        for path, chain in chains.items():
            base = chain[0].get_base_layer()
            if hasattr(base, "quantized") or not base.weight.is_floating_point():
                raise ConfigError(f"{path}: a quantised base takes no adapters into its weights; do not fuse them")
            folded.append((path, chain[0], _fused_parameters(base, chain)))
    return FusedAdapters(models, folded)


def _fused_parameters(base: Any, chain: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The weight, and if an adapter changes it the bias, of ``base`` with what the adapter layers' active adapters
    add.
    """
    weight, bias = base.weight.data.float(), None if base.bias is None else base.bias.data.float()
    total = weight
    for layer in (
        attach.AttachedLayer(adapter_layer, key)
        for adapter_layer in reversed(chain)
        for key in adapter_layer.active_adapters
    ):
        state = layer.state
        total = total + layer.scale * state.delta_weight(weight)
        if "diff_b" in state.tensors and bias is not None:
            bias = bias + layer.scale * state.tensors["diff_b"]
    own = {"weight": base.weight.data if total is weight else total.to(base.weight.dtype)}
    return own if bias is None else {**own, "bias": bias.to(base.bias.dtype)}


def _assign(base: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        getattr(base, name).data = tensor
