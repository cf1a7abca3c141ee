"""Ways to compute images change next to nothing of them; offloading and xformers by stand-ins, without a GPU."""

import types
import warnings

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload, UserCpuOffloadHook

from sdlora.errors import ConfigError, OutOfMemoryError
from sdlora.families.base import Family
from sdlora.generation import memory
from sdlora.generation import runtime as engines
from sdlora.generation.runtime import Runtime, require_supported
from sdlora.generation.settings import Engine
from sdlora.generation.studio import Studio
from tests.support.adapters import random_lora
from tests.support.tiny_models import write_tiny_model

CPU, CARD = torch.device("cpu"), torch.device("cuda")
TURNS, XFORMERS = Engine(offload="model"), Engine(attention="xformers")


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return Studio(str(tiny_base), device="cpu").family


def pixels(family, side=64, studio=None, **engine):
    studio = studio or Studio.from_family(family, engine=Engine(**engine))
    [image] = studio.generate("a red house", seed=3, steps=2, width=side, height=side)
    return np.asarray(image, float)


def test_a_picture_of_one_tile_is_the_same_to_the_bit_and_a_large_one_close(loaded):
    assert loaded.tile_size == 64
    assert (pixels(loaded, 64, vae_tiling="on") == pixels(loaded, 64, vae_tiling="off")).all()
    whole, tiled = pixels(loaded, 128, vae_tiling="off"), pixels(loaded, 128, vae_tiling="on")
    assert (whole != tiled).any()
    # A random VAE's norms see a tile alone, which tells more than a trained one's; shapes and colours stay.
    assert np.abs(whole - tiled).mean() < whole.std() / 4
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.95


def test_large_pictures_are_tiled_of_their_own_accord_where_memory_is_short_and_it_is_told(loaded, monkeypatch):
    whole, tiled = pixels(loaded, 128, vae_tiling="off"), pixels(loaded, 128, vae_tiling="on")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert (pixels(loaded, 128) == whole).all()
        monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
        pixels(loaded, 64)  # Tiles would save nothing.
        assert (pixels(loaded, 128, vae_tiling="off") == whole).all()
    with pytest.warns(UserWarning, match="128x128 is decoded in tiles of 64 pixels"):
        assert (pixels(loaded, 128) == tiled).all()


def test_the_vae_is_left_as_it_was(loaded, monkeypatch):
    """A training encodes its pictures with the same VAE, whole."""
    seen = []
    decode = loaded.vae.decode
    monkeypatch.setattr(loaded.vae, "decode", lambda *a, **k: (seen.append(loaded.vae.use_tiling), decode(*a, **k))[1])
    pixels(loaded, vae_tiling="on")
    assert seen == [True] and loaded.vae.use_tiling is False


@pytest.mark.parametrize(
    ("engine", "device", "message"),
    [
        (TURNS, CPU, "offload = model: the model is on the CPU already"),
        (XFORMERS, CARD, "attention = xformers: needs xformers"),
    ],
)
def test_what_cannot_be_done_here_is_refused_in_a_sentence(engine, device, message):
    with pytest.raises(ConfigError, match=message):
        require_supported(engine, device)


def test_it_is_refused_before_the_base_is_loaded():
    with pytest.raises(ConfigError, match="offload"):
        Studio("no such model", device="cpu", engine=TURNS)


def test_xformers_is_refused_elsewhere_than_on_cuda(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"works on CUDA alone, and this is cpu"):
        require_supported(XFORMERS, CPU)
    require_supported(XFORMERS, CARD)


def test_where_memory_runs_out_offloading_is_named_only_where_it_can_help(loaded, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("sdlora.generation.studio.sample_images", fail)
    studio, notices = Studio.from_family(loaded), []
    for device in (CPU, torch.device("mps")):
        studio.runtime.device = device
        with pytest.raises(OutOfMemoryError) as error:
            pixels(None, studio=studio)
        notices.append(str(error.value).partition("; ")[2])
    assert notices == ["take a smaller size", "take a smaller size, or offload = model"]


@pytest.fixture
def anything_goes(monkeypatch):
    monkeypatch.setattr(engines, "require_supported", lambda engine, device: None)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_parts_come_and_go_in_the_order_of_their_work(family, tmp_path, anything_goes, monkeypatch):
    """On one device nothing really moves: who is called to it, and sent away, is what is looked at."""
    base = str(write_tiny_model(tmp_path / family, family))
    studio = Studio(base, device="cpu")
    state = random_lora(paths=["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"])
    studio.add_adapter("one", state)
    plain = pixels(None, studio=studio)
    studio.runtime.use(TURNS)
    studio.remove_adapter("one")
    studio.add_adapter("one", state)  # An adapter may come when the hooks are there.
    names = {id(part): name for name, part in {**studio.family.models, "vae": studio.family.vae}.items()}
    came, call = [], CpuOffload.pre_forward
    monkeypatch.setattr(
        CpuOffload,
        "pre_forward",
        lambda hook, part, *a, **k: (came.append(names[id(part)]), call(hook, part, *a, **k))[1],
    )
    gone, leave = [], engines_hook().offload
    monkeypatch.setattr(engines_hook(), "offload", lambda hook: (gone.append(names[id(hook.model)]), leave(hook))[1])
    assert (pixels(None, studio=studio) == plain).all()
    encoders = ["text_encoder", "text_encoder_2"] if family == "sdxl" else ["text_encoder"]
    assert list(dict.fromkeys(came)) == [*encoders, "unet", "vae"]
    assert came[-1] == "vae" and came.count("unet") == 2
    assert gone[-len(names) :] == [*encoders, "unet", "vae"]  # At the end none is left on the device.
    studio.runtime.use(Engine())
    came.clear()
    assert (pixels(None, studio=studio) == plain).all() and came == []
    assert not any(hasattr(part, "_hf_hook") for part in (*studio.family.models.values(), studio.family.vae))


def engines_hook():
    return UserCpuOffloadHook


def test_a_model_whose_parts_take_turns_is_never_whole_on_its_device(tiny_base, anything_goes, monkeypatch):
    from sdlora.generation import studio

    moved, to = [], Family.to
    monkeypatch.setattr(studio, "require_supported", lambda engine, device: None)
    monkeypatch.setattr(
        Family, "to", lambda family, device=None, dtype=None: moved.append(str(device)) or to(family, None)
    )
    monkeypatch.setattr(studio, "choose_device", lambda name: torch.device("meta"))
    made = Studio(str(tiny_base), precision="fp32", engine=TURNS)
    assert moved == ["cpu"] and made.runtime.device.type == "meta"
    Studio(str(tiny_base), precision="fp32")
    assert moved == ["cpu", "meta"]


def test_xformers_is_asked_of_the_unet_alone_and_taken_back(loaded, anything_goes, monkeypatch):
    unet, requests = loaded.models["unet"], []
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: requests.append("on"))
    monkeypatch.setattr(unet, "disable_xformers_memory_efficient_attention", lambda: requests.append("off"))
    machine = Runtime(loaded, CPU, XFORMERS)
    machine.use(Engine(attention="xformers", vae_tiling="on"))
    assert requests == ["on"]
    machine.use(Engine())
    assert requests == ["on", "off"]


def test_kernels_that_do_not_work_are_told_and_pytorchs_own_are_back(loaded, anything_goes, monkeypatch):
    def fail():
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nwith inputs: ...")

    before = pixels(loaded)
    monkeypatch.setattr(loaded.models["unet"], "enable_xformers_memory_efficient_attention", fail)
    studio = Studio.from_family(loaded)
    with pytest.raises(
        ConfigError, match=r"does not work here \(No operator found for `memory_eff[a-z_]+`\); take sdpa"
    ):
        studio.runtime.use(XFORMERS)
    assert studio.runtime.engine == Engine()
    assert (pixels(None, studio=studio) == before).all()


def test_adapters_take_part_in_xformers_attention(tiny_base, anything_goes, monkeypatch):
    """diffusers' processor calls the layers that PEFT has wrapped; the kernel itself is a stand-in."""
    from diffusers.models import attention_processor as theirs

    called = []

    def kernel(query, key, value, attn_bias=None, op=None, scale=None):
        called.append(query.shape)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_bias, scale=scale)

    ops = types.SimpleNamespace(memory_efficient_attention=kernel)
    monkeypatch.setattr(theirs, "xformers", types.SimpleNamespace(ops=ops))
    studio = Studio(str(tiny_base), device="cpu")
    base = pixels(None, studio=studio)
    studio.add_adapter("one", random_lora())
    plain = pixels(None, studio=studio)
    assert (base != plain).any() and not called
    unet = studio.family.models["unet"]
    enable = lambda: unet.set_attn_processor(theirs.XFormersAttnProcessor())  # noqa: E731
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", enable)
    studio.runtime.use(XFORMERS)
    assert np.abs(pixels(None, studio=studio) - plain).max() <= 1
    assert called
