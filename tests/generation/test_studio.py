"""On a tiny random SD 1.x: what must hold for any base model."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from sdlora.adapters import attach
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.errors import ConfigError, FileError, MismatchError, NonFiniteError
from sdlora.families.stable_diffusion import decode_latents
from sdlora.formats import write_adapter
from sdlora.generation.infotext import parse_parameters
from sdlora.generation.sampling import _encode
from sdlora.generation.studio import Studio
from tests.support.adapters import TWO_STEPS, UNET_PATHS, adapter_parameters, random_lora
from tests.support.tiny_models import UNET_CONFIGS, tiny_models


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return Studio(str(tiny_base), device="cpu").family


@pytest.fixture
def studio(loaded):
    """A fresh studio over one loaded base, whose adapters are gone again afterwards."""
    studio = Studio.from_family(loaded)
    yield studio
    studio.unfuse()
    for name in studio.adapters:
        studio.remove_adapter(name)


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def settings(image):
    return parse_parameters(image.info["parameters"]).settings


def test_picture_i_has_seed_plus_i(studio):
    one, two, three = studio.generate("a red house", count=3, **TWO_STEPS)
    assert [settings(image)["Seed"] for image in (one, two, three)] == ["7", "8", "9"]
    [again] = studio.generate("a red house", steps=2, seed=8)
    assert (pixels([again]) == pixels([two])).all()
    assert (pixels([one]) != pixels([two])).any()


def test_a_picture_hardly_depends_on_its_batch(studio):
    prompts = ["a red house", "a blue cat", "a green tree"]
    alone = pixels(studio.generate(prompts, sampler="Euler a", **TWO_STEPS))
    together = pixels(studio.generate(prompts, sampler="Euler a", batch=3, **TWO_STEPS))
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_a_random_seed_is_recorded_and_repeats(studio):
    [first] = studio.generate("a red house", steps=2)
    [second] = studio.generate("a red house", steps=2)
    assert settings(first)["Seed"] != settings(second)["Seed"]
    [again] = studio.generate("a red house", steps=2, seed=int(settings(first)["Seed"]))
    assert (pixels([again]) == pixels([first])).all()


def test_the_parameters_hold_all_that_made_the_picture(studio):
    studio.add_adapter("glass", random_lora(sshs_model_hash="0123456789abcdef"), scale=0.5)
    [image] = studio.generate("a house", negative="snow, ice", sampler="dpm++ 2m karras", cfg=5, width=128, **TWO_STEPS)
    read = parse_parameters(image.info["parameters"])
    assert (read.prompt, read.negative) == ("a house <lora:glass:0.5>", "snow, ice")
    assert dict(read.settings) | {"Model": "", "Model hash": ""} == {
        "Steps": "2",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "5",
        "Seed": "7",
        "Size": "128x64",
        "Model hash": "",
        "Model": "",
        "Lora hashes": "glass: 0123456789ab",
    }
    assert image.size == (128, 64)
    [again] = studio.generate(
        read.prompt, negative=read.negative, sampler="DPM++ 2M Karras", cfg=5, width=128, **TWO_STEPS
    )
    assert (pixels([again]) == pixels([image])).all()


def test_scale_zero_is_the_base_to_the_bit(studio):
    base = pixels(studio.generate("a red house", **TWO_STEPS))
    studio.add_adapter("a", random_lora(), scale=0.0)
    studio.add_adapter("b", random_lora(seed=2), scale=0)
    assert (pixels(studio.generate("a red house", **TWO_STEPS)) == base).all()
    studio.set_scale("a", 1.0)
    assert (pixels(studio.generate("a red house", **TWO_STEPS)) != base).any()
    studio.remove_adapter("a")
    studio.remove_adapter("b")
    assert studio.adapters == {}
    assert (pixels(studio.generate("a red house", **TWO_STEPS)) == base).all()


def test_the_prompt_wins_over_the_sliders(studio):
    studio.add_adapter("a", random_lora(), scale=1.0)
    studio.add_adapter("b", random_lora(seed=2), scale=-0.5)
    sliders = pixels(studio.generate("a red house", **TWO_STEPS))
    studio.set_scale("a", 0.25)
    tagged = studio.generate(["<lora:a:1>a red house", "a red house <lora:a:1>"], steps=2, seed=7)
    assert (pixels(tagged[:1]) == sliders).all()
    assert parse_parameters(tagged[1].info["parameters"]).prompt == "a red house <lora:a:1> <lora:b:-0.5>"
    assert studio.adapters == {"a": 0.25, "b": -0.5}
    with pytest.raises(ConfigError, match="negative"):
        studio.generate("a", negative="<lora:a:1>")


def test_a_tag_scales_text_encoder_and_unet_apart(studio):
    studio.add_adapter("a", random_lora(), scale={"unet": 0.0, "text_encoder": 1.0})
    by_part = studio.generate("a red house", **TWO_STEPS)
    assert settings(by_part[0])["Adapter scales"] == '{"a": {"unet": 0.0, "text_encoder": 1.0}}'
    studio.set_scale("a", 1.0)
    assert (pixels(studio.generate("a red house<lora:a:1:0>", **TWO_STEPS)) == pixels(by_part)).all()
    studio.add_adapter("unet only", random_lora(UNET_PATHS), scale=0)
    studio.generate("a red house<lora:unet only:1:0.5>", **TWO_STEPS)


def test_fused_adapters_draw_the_same_and_leave_the_base_whole(studio):
    base = pixels(studio.generate("a red house", **TWO_STEPS))
    studio.add_adapter("a", random_lora(), scale=0.8)
    mixed = pixels(studio.generate("a red house", **TWO_STEPS))
    studio.fuse()
    fused = pixels(studio.generate("a red house", **TWO_STEPS))
    assert np.abs(fused.astype(int) - mixed).max() <= 1
    for change in (
        lambda: studio.set_scale("a", 1),
        lambda: studio.remove_adapter("a"),
        lambda: studio.add_adapter("b", random_lora()),
        lambda: studio.generate("x <lora:a:1>"),
        studio.fuse,
    ):
        with pytest.raises(ConfigError, match=r"unfuse\(\)"):
            change()
    studio.unfuse()
    studio.set_scale("a", 0)
    assert (pixels(studio.generate("a red house", **TWO_STEPS)) == base).all()


def test_names_are_checked(studio):
    studio.add_adapter("mystyle", random_lora())
    with pytest.raises(ConfigError, match="already loaded"):
        studio.add_adapter("mystyle", random_lora())
    with pytest.raises(ConfigError, match="did you mean mystyle"):
        studio.set_scale("mystile", 1)
    with pytest.raises(ConfigError, match="did you mean mystyle"):
        studio.generate("a <lora:mystyl:1>")
    with pytest.raises(ConfigError, match="without < >"):
        studio.add_adapter("my:style", random_lora())
    with pytest.raises(ConfigError, match="number"):
        studio.add_adapter("other", random_lora(), scale=float("nan"))
    assert list(studio.adapters) == ["mystyle"]


def test_an_adapter_of_another_base_is_refused_whole(studio):
    wrong = ModuleState({"down": torch.randn(2, 768), "up": torch.randn(16, 2)}, alpha=2.0)
    modules = {**random_lora().modules, UNET_PATHS[1]: wrong}
    with pytest.raises(MismatchError):
        studio.add_adapter("wrong", AdapterState("lora", modules))
    assert studio.adapters == {} and attach.attached_adapters(studio.family.models) == []


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_an_adapter_comes_from_a_file_too(studio, tmp_path, format):
    """Its hash is A1111's: SHA-256 of what follows the safetensors header."""
    write_adapter(random_lora(), tmp_path / "a.safetensors", format=format)
    content = (tmp_path / "a.safetensors").read_bytes()
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    studio.add_adapter("state", random_lora())
    studio.add_adapter("file", str(tmp_path / "a.safetensors"))
    one, other = studio.generate(["a<lora:state:0><lora:file:1>", "a<lora:state:1><lora:file:0>"], steps=2, seed=3)
    [again] = studio.generate("a<lora:state:0><lora:file:1>", steps=2, seed=4)
    assert (pixels([again]) == pixels([other])).all()
    assert settings(one)["Lora hashes"] == f"file: {digest[:12]}"
    with pytest.raises(FileError, match="missing"):
        studio.add_adapter("missing", tmp_path / "missing.safetensors")
    assert list(studio.adapters) == ["state", "file"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"width": 100}, "width = 100: this model makes multiples of 64; take 128"),
        ({"height": 72}, "height = 72: .* take 64"),
        ({"height": 1}, "height = 1"),
        ({"steps": 0}, "steps = 0"),
        ({"cfg": float("nan")}, "cfg = nan"),
        ({"count": 0}, "count = 0"),
        ({"seed": -2}, "seed = -2"),
        ({"clip_skip": 3}, "clip_skip = 3: give 1 to 2"),
        ({"sampler": "Eulr"}, "Euler"),
    ],
)
def test_bad_values_are_refused_by_name(studio, bad, message):
    with pytest.raises(ConfigError, match=message):
        studio.generate("a red house", **bad)


def test_progress_counts_all_steps_and_a_stop_keeps_what_is_finished(studio):
    progress = []
    images = studio.generate("a", count=2, steps=3, seed=1, sampler="Heun", on_progress=lambda *at: progress.append(at))
    assert progress[-1] == (6, 6) and progress == sorted(progress) and len(images) == 2
    calls = iter(range(99))
    stopped = studio.generate("a", count=3, steps=3, seed=1, sampler="Heun", should_stop=lambda: next(calls) > 6)
    assert len(stopped) == 1
    assert (pixels(stopped) == pixels(images[:1])).all()


def test_no_word_of_a_long_prompt_is_lost_and_nothing_is_said(studio):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        long, other, shorter = (studio.generate("red " * 90 + last, **TWO_STEPS) for last in ("house", "cat", ""))
    assert (pixels(long) != pixels(other)).any() and (pixels(long) != pixels(shorter)).any()
    assert parse_parameters(long[0].info["parameters"]).prompt == "red " * 90 + "house"


def test_a_part_is_encoded_on_its_own_and_the_negative_prompt_is_padded(studio):
    """Both halves of a prompt that is broken read as they would alone."""
    family = studio.family
    with torch.no_grad():
        halves = [family.encode_text(family.tokenize([text])).text for text in ("a red house", "a blue cat", "")]
        [one, two] = _encode(family, "a red house BREAK a blue cat", 1)
    assert torch.equal(one.text, halves[0]) and torch.equal(two.text, halves[1])
    studio.generate("a red house", negative="snow " * 80, **TWO_STEPS)
    mixed = pixels(studio.generate(["a red house", "a BREAK b", "a blue cat"], batch=3, **TWO_STEPS))
    assert np.abs(mixed[2].astype(int) - pixels(studio.generate("a blue cat", steps=2, seed=9))[0]).max() <= 1


@pytest.mark.parametrize(
    "text", ["", "a red house, at night", "Ünïcödé 家 🏠 <|endoftext|> x", " two  spaces ", "a" * 40]
)
def test_a_prompt_without_syntax_is_encoded_as_in_training(studio, text):
    assert torch.equal(
        studio.family.build_input_ids(studio.family.token_ids_without_special(text)), studio.family.tokenize([text])
    )


def test_weights_change_the_picture_and_a_weight_of_one_changes_nothing(studio):
    plain = pixels(studio.generate("a red house", **TWO_STEPS))
    assert (pixels(studio.generate("a (red:1) house", **TWO_STEPS)) == plain).all()
    assert (pixels(studio.generate("a (red:1.5) house", **TWO_STEPS)) != plain).any()
    escaped, literal = (studio.generate(text, **TWO_STEPS) for text in (r"a \(red\) house", "a (red) house"))
    assert (pixels(escaped) != pixels(literal)).any()
    [heavy] = studio.generate("a (red:1.5) house", **TWO_STEPS)
    assert parse_parameters(heavy.info["parameters"]).prompt == "a (red:1.5) house"


def test_clip_skip_reads_an_earlier_layer_and_is_recorded(studio):
    family = studio.family
    ids = family.tokenize(["a red house"])
    with torch.no_grad():
        layers = family.models["text_encoder"](ids, output_hidden_states=True).hidden_states
        norm = family.models["text_encoder"].final_layer_norm
        assert torch.equal(family.encode_text(ids, 1).text, norm(layers[-1]))
        assert torch.equal(family.encode_text(ids, 2).text, norm(layers[-2]))
    last, earlier = (studio.generate("a red house", clip_skip=skip, **TWO_STEPS) for skip in (1, 2))
    assert (pixels(last) != pixels(earlier)).any()
    assert "Clip skip" not in settings(last[0])
    assert settings(earlier[0])["Clip skip"] == "2"


def test_guidance_of_one_ignores_the_negative_prompt(studio):
    plain = pixels(studio.generate("a red house", cfg=1, **TWO_STEPS))
    assert (pixels(studio.generate("a red house", cfg=1, negative="snow", **TWO_STEPS)) == plain).all()
    assert (pixels(studio.generate("a red house", cfg=3, **TWO_STEPS)) != plain).any()


def test_a_training_model_is_left_as_it_was(studio):
    models = studio.family.models
    base = pixels(studio.generate("a red house", **TWO_STEPS))
    attach.load_state(models, random_lora(), "training")
    for parameter in adapter_parameters(models, "training"):
        parameter.requires_grad_(True)
    models["unet"].train()
    models["unet"].mid_block.eval()
    state = [(module.training, module) for model in models.values() for module in model.modules()]
    random = torch.get_rng_state()
    with torch.enable_grad():
        preview = pixels(studio.generate("a red house", sampler="Euler a", **TWO_STEPS))
        assert torch.is_grad_enabled()
    assert (preview != base).any(), "the adapter in training is active"
    assert all(module.training == mode for mode, module in state)
    assert all(parameter.requires_grad for parameter in adapter_parameters(models, "training"))
    assert torch.equal(torch.get_rng_state(), random)
    models["unet"].eval()
    attach.remove_adapter(models, "training")
    assert (pixels(studio.generate("a red house", **TWO_STEPS)) == base).all()


class _OverflowingVAE(torch.nn.Module):
    """A decoder that is sound in float32 alone, as SDXL's is."""

    config = type("Config", (), {"scaling_factor": 2.0})

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float16))

    @property
    def dtype(self):
        return self.weight.dtype

    def decode(self, latents, return_dict):
        assert latents.dtype == self.dtype
        return (latents * 60000 * 60000 / 60000 / 60000 * self.weight,)


def test_a_decoder_that_overflows_in_half_precision_is_run_in_full():
    vae = _OverflowingVAE()
    pixels = decode_latents(vae, torch.full((1, 4, 2, 2), 4.0, dtype=torch.float16))
    assert torch.allclose(pixels, torch.full_like(pixels, 0.2), atol=1e-3)
    assert pixels.dtype == torch.float32 and vae.dtype == torch.float16


@pytest.mark.parametrize("family", UNET_CONFIGS)
def test_a_vae_whose_float16_gives_nan_draws_what_its_float32_does(family):
    """The true decoder's layers, whose first one overflows in float16: all behind it is NaN, which would be black."""
    vae = tiny_models(family=family)["vae"]
    vae.decoder.conv_in.weight.data *= 2e5
    vae.half()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        narrow = vae.decode(latents.half() / vae.config.scaling_factor, return_dict=False)[0]
        assert not narrow.isfinite().any()
        found = decode_latents(vae, latents.half())
        assert vae.dtype == torch.float16
        wide = vae.float().decode(latents.half().float() / vae.config.scaling_factor, return_dict=False)[0]
    assert torch.allclose(found, wide, atol=2e-3)
    assert found.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_vae_that_gives_no_numbers_at_all_is_an_error_not_a_black_picture(dtype):
    vae = tiny_models()["vae"].to(dtype)
    vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with torch.no_grad(), pytest.raises(NonFiniteError, match="VAE gives NaN, in float32 too"):
        decode_latents(vae, torch.zeros(1, 4, 8, 8, dtype=dtype))
    assert vae.dtype == dtype


def test_latents_that_are_no_numbers_are_an_error_not_a_black_picture(studio):
    studio.add_adapter("broken", random_lora(), scale=1e38)
    with pytest.raises(NonFiniteError, match="scales"):
        studio.generate("a red house", **TWO_STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "gpu"}, "is no device"), ({"precision": "fp8"}, "precision"), ({"precision": "fp16"}, "CPU")],
)
def test_devices_and_precisions_are_checked_before_anything_is_loaded(options, message):
    with pytest.raises(ConfigError, match=message):
        Studio("no such model", **{"device": "cpu"} | options)
