"""The layers that hold adapters in live models: PEFT's, of one meaning whatever the method.

An adapter layer wraps a base layer, or another adapter layer of it, and computes y = W x + Σ sᵢ · δᵢ(x): each adapter
adds what it changes of the *base's* output, times its scale, so that adapters of any methods mix in any order. PEFT's
own layers mean different things by a scale, or have none; what is overridden here is that alone.
"""

from typing import Any

import torch
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sdlora.adapters import parametrizations
from sdlora.adapters.state import ModuleState


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Base class of all adapter layers. ``scales`` is each adapter's scale: a number, or one for each sample."""

    base_layer: nn.Module
    scales: dict[str, Any]
    units: dict[str, float]
    """Value in ``scales`` of a scale of 1, by adapter; 1 where it is not there."""
    innermost = False
    """It goes below layers of other kinds, next to the base layer."""

    def __init__(self, base_layer: nn.Module):
        nn.Module.__init__(self)
        self.base_layer, self._disable_adapters, self.merged_adapters = base_layer, False, []
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self._init_adapters()

    def _init_adapters(self) -> None:
        self.scales, self.units = {}, {}
        self.other_param_names = (*self.other_param_names, "scales", "units")
        self._active_adapter = []

    def add_adapter(self, key: str, module: ModuleState, dropout: float = 0.0) -> None:
        """Add an adapter: float32 parameters, frozen, where the base layer is. ``dropout`` is LoRA's alone."""
        base: Any = self.get_base_layer()
        for name, tensor in module.tensors.items():
            copy = tensor.detach().to(base.weight.device, torch.float32, copy=True).contiguous()
            self.params(name)[key] = nn.Parameter(copy, requires_grad=False)
        self.scales[key] = 1.0

    def params(self, name: str) -> Any:
        """Return the container of the tensors of this neutral name are kept, by adapter."""
        return getattr(self, name)

    def delta_output(self, key: str, x: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
        """δ(x) of one adapter; ``plain`` is the base layer's own output, where it is there already."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        plain = None if isinstance(self.base_layer, BaseTunerLayer) else result
        for key in self.active_adapters:
            if key in self.scales:
                result = result + (self.delta_output(key, x, plain) * self.scales[key]).to(result.dtype)
        return result


class _LycorisLayer(AdapterLayer):
    """PEFT's LoHa and LoKr layers, with tensors of any shapes that multiply out to the base's."""

    def add_adapter(self, key: str, module: ModuleState, dropout: float = 0.0) -> None:
        super().add_adapter(key, module)
        self.r[key], self.alpha[key], self.scaling[key] = module.rank or 1, module.alpha, module.scale  # type: ignore[operator, index, assignment]
        self.rank_dropout[key] = self.module_dropout[key] = 0.0  # type: ignore[operator, index, assignment]

    def delta_output(self, key: str, x: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
        return self._get_delta_activations(key, x)  # type: ignore[operator]


class _LohaLayer(_LycorisLayer):
    def __init__(self, base_layer: nn.Module):
        loha.LoHaLayer.__init__(self, base_layer)  # type: ignore[arg-type]
        self._init_adapters()


class _LokrLayer(_LycorisLayer):
    def __init__(self, base_layer: nn.Module):
        lokr.LoKrLayer.__init__(self, base_layer)  # type: ignore[arg-type]
        self._init_adapters()


class LohaLinear(_LohaLayer, loha.Linear): ...


class LohaConv2d(_LohaLayer, loha.Conv2d): ...


class LokrLinear(_LokrLayer, lokr.Linear): ...


class LokrConv2d(_LokrLayer, lokr.Conv2d): ...


class Ia3AdapterLayer(AdapterLayer):
    """(IA)³: activations times a learnt scale, of which the parameters are the difference to 1.

    Kept so, weight decay moves them towards the base, and not towards zero as with PEFT's own layer; and the base's
    bias is left alone, as every tool that folds such a file into weights leaves it.
    """

    adapter_layer_names = ("output_scale", "input_scale")

    def delta_output(self, key: str, x: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
        base = self.get_base_layer()
        by_input = self.params("input_scale")
        if key in by_input:
            return without_bias(base, (x * per_channel(by_input[key], base)).to(x.dtype))
        return without_bias(base, x, plain) * per_channel(self.params("output_scale")[key], base)


class FullDiffLayer(AdapterLayer):
    """A whole difference of weights, and of the bias."""

    adapter_layer_names = ("diff", "diff_b")

    def delta_output(self, key: str, x: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
        return apply_weights(
            self.get_base_layer(), x.float(), self.params("diff")[key], self.params("diff_b").get(key, None)
        )


def apply_weights(base: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return what ``base`` (linear, or a convolution) would give with these weights instead of its own."""
    weight = weight.view(base.weight.shape)
    if isinstance(base, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, base.stride, base.padding, base.dilation, base.groups)


def per_channel(values: torch.Tensor, base: Any) -> torch.Tensor:
    """A value a channel (C,), to be multiplied with what ``base`` reads or gives: (..., C), or (B, C, H, W)."""
    return values.flatten() if isinstance(base, nn.Linear) else values.view(-1, 1, 1)


def without_bias(base: Any, x: torch.Tensor, plain: torch.Tensor | None = None) -> torch.Tensor:
    """W x: the output of ``base`` without its bias; ``plain`` is that with it, where it is there already."""
    if plain is None:
        return apply_weights(base, x.to(base.weight.dtype), base.weight)
    return plain if base.bias is None else plain - per_channel(base.bias, base)


@torch.no_grad()
def weight_norm(base: Any, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """‖W + scale · up @ down‖ of each output, (out,) float32."""
    kind = base.weight.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
        weight, a, b = (tensor.detach().flatten(1).float() for tensor in (base.weight, down, up))
        cross = ((weight @ a.T) * b).sum(1)
        square = ((b @ (a @ a.T)) * b).sum(1)
        return (weight.square().sum(1) + 2 * scale * cross + scale**2 * square).clamp(min=parametrizations.TINY).sqrt()
