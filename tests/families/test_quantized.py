"""Linear layers in few bits: what they stand for, what they take, and training over them."""

import sys

import pytest
import torch
from torch import nn

from sdlora.adapters import METHODS, attach
from sdlora.adapters.fused import fuse
from sdlora.errors import ConfigError
from sdlora.families.base import Conditioning
from sdlora.families.loading import load_family
from sdlora.families.quantized import QuantizedLinear, quantize, quantized_bytes
from sdlora.families.settings import Model
from sdlora.formats import export_adapter, read_adapter
from tests.support.marks import NEEDS_LIBRARY, SLOW

KINDS = ["int8", pytest.param("nf4", marks=NEEDS_LIBRARY)]
NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0]  # fmt: skip
"""The levels of a block's largest weight (arXiv:2305.14314, appendix E), four digits."""


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(192, 32)


def rounded(weight, kind):
    """The nearest weights that ``kind`` can hold, worked out beside it."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    blocks = weight.reshape(-1, 64)
    most = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = ((blocks / most)[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * most).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_stands_for_the_nearest_weights_that_its_bits_can_hold(layer, kind):
    few = QuantizedLinear(layer, kind)
    torch.testing.assert_close(few.weight, rounded(layer.weight.detach(), kind), atol=1e-4, rtol=1e-3)
    assert few.packed.nbytes + few.scales.nbytes == quantized_bytes(32, 192, kind) < layer.weight.nbytes / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_weights_that_it_stands_for(layer, kind, dtype):
    few = QuantizedLinear(layer, kind).to(dtype)
    x = torch.randn(2, 5, 192).to(dtype).requires_grad_(True)
    plain = nn.functional.linear(x, few.weight) + few.bias
    torch.testing.assert_close(few(x), plain)
    pull = torch.randn_like(plain)
    theirs, ours = (torch.autograd.grad(y, x, pull)[0] for y in (plain, few(x)))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_precision_rounds_no_scale(layer, kind):
    few = QuantizedLinear(layer, kind)
    before = few.weight
    assert few.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert torch.equal(few.to(torch.float32).weight, before)


def test_an_output_of_zeros_stays_so():
    layer = nn.Linear(64, 2)
    nn.init.zeros_(layer.weight)
    assert torch.equal(QuantizedLinear(layer, "int8").weight, torch.zeros(2, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_bits_is_kept_for_the_backward_pass(layer, kind):
    kept = []
    few = QuantizedLinear(layer, kind)
    x = torch.randn(2, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        few(x)
    assert kept == []


@pytest.fixture
def family(tiny_base):
    return load_family(Model(base=str(tiny_base)))


def prediction(family):
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    return family.predict(latents, torch.tensor([500]), Conditioning(text))


PAIRS = [
    *(pytest.param("int8", method, id=f"int8-{method}") for method in METHODS),
    *(
        pytest.param("nf4", method, id=f"nf4-{method}", marks=[NEEDS_LIBRARY, *([] if method == "lora" else [SLOW])])
        for method in METHODS
    ),
]


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_every_method_goes_into_a_rounded_base_learns_there_and_is_written(family, tmp_path, kind, method):
    quantize(family.models["unet"], kind, torch.device("cpu"))
    with torch.no_grad():
        plain = prediction(family)
    adapter = METHODS[method](targets="unet.mid_block", text_encoder=False)
    parameters = adapter.attach(family.models, "new", 0).parameters
    fresh = prediction(family)
    torch.testing.assert_close(fresh.detach(), plain, atol=1e-5, rtol=1e-5)
    fresh.square().mean().backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.01
        moved = prediction(family)
    state = attach.read_state(family.models, "new")
    attach.remove_adapter(family.models, "new")
    export_adapter(state, tmp_path / "new.safetensors", format="kohya")
    attach.load_state(family.models, read_adapter(tmp_path / "new.safetensors"), "again")
    with torch.no_grad():
        torch.testing.assert_close(prediction(family), moved, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_base_takes_no_adapter_into_its_weights(family, kind):
    quantize(family.models["unet"], kind, torch.device("cpu"))
    METHODS["lora"](text_encoder=False).attach(family.models, "new", 0)
    with pytest.raises(ConfigError, match="a quantised base takes no adapters into its weights"):
        fuse(family.models, {"new": 1.0})


def test_an_adapters_share_of_a_model_is_the_same_whatever_the_bits(tiny_base):
    shares = []
    for kind in (None, "int8"):
        family = load_family(Model(base=str(tiny_base)))
        if kind:
            quantize(family.models["unet"], kind, torch.device("cpu"))
        shares.append(METHODS["lora"](text_encoder=False).attach(family.models, "new", 0).size)
    assert shares[0] == shares[1]


def test_without_bitsandbytes_nf4_says_what_to_install(family, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ConfigError, match=r"model\.quantize: nf4 needs bitsandbytes; run pip install bitsandbytes"):
        quantize(family.models["unet"], "nf4", torch.device("cpu"))
