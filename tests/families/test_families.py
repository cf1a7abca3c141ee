"""Each family on a tiny random model of its true architecture: the whole main job, and plain diffusers' own results."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from sdlora.adapters import METHODS
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.data.cropping import size_and_crop
from sdlora.data.images import ImageSize
from sdlora.diffusion.ddpm import DDPMProcess, alphas_cumprod
from sdlora.errors import ConfigError, MismatchError, ModelError
from sdlora.events import SampleReady, StepDone
from sdlora.families.loading import load_family
from sdlora.families.sdxl import SDXL
from sdlora.families.settings import Model
from sdlora.formats import FORMATS, read_adapter, write_adapter
from sdlora.generation.samplers import make_scheduler
from sdlora.generation.studio import Studio
from tests.support.tiny_models import UNET_CONFIGS, tiny_pipeline, write_tiny_model
from tests.support.training import train_in_process

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
FAMILIES = tuple(UNET_CONFIGS)
PROMPT = "a red house on grass"


def every_method(kept):
    """Return families and methods: all methods with SD 1.x, of the others only ``kept`` in each test run."""
    return [
        pytest.param(family, method, marks=[] if family == "sd1" or method == kept else [pytest.mark.slow])
        for family in FAMILIES
        for method in METHODS
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def base(family, tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("bases") / family, family)


def pixels(image):
    return np.asarray(image).astype(int)


def alone(base):
    """The folder's pipeline, as plain diffusers loads it."""
    return DiffusionPipeline.from_pretrained(base)


def plain(pipeline, **values):
    """Generate the same with diffusers alone."""
    pipeline.scheduler = make_scheduler("DDIM", DDPMProcess(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return pipeline(PROMPT, num_inference_steps=3, guidance_scale=7, generator=generator, **values).images[0]


def generate(studio, prompt=PROMPT, **values):
    return studio.generate(prompt, seed=7, steps=3, cfg=7, sampler="DDIM", **values)[0]


def test_a_folder_is_known_for_what_it_is(family, base):
    loaded = load_family(Model(base=str(base)))
    assert loaded.name == family
    assert loaded.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert set(loaded.models) == {"unet", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])}
    assert loaded.native_size == 64


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_a_picture_is_that_of_plain_diffusers(family, base, size):
    height, width = size
    ours = generate(Studio(str(base), device="cpu"), height=height, width=width, negative="snow")
    theirs = plain(alone(base), height=height, width=width, negative_prompt="snow")
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_training_previews_resume_a_mix_and_files_all_work(family, base, configure, tmp_path):
    config = configure(
        model__base=str(base), train__steps=4, sample__every=2, sample__prompts=[PROMPT], sample__steps=2,
        adapter__targets="linear+conv", checkpoint__every=2,
    )  # fmt: skip
    whole, events, paths = train_in_process(config, tmp_path / "whole")
    assert whole and sum(type(event) is SampleReady for event in events) >= 3
    stopped, *_ = train_in_process(config, tmp_path / "parts", stop_after=2)
    resumed, _, again = train_in_process(config, tmp_path / "parts")
    assert (stopped, resumed) == (False, True)
    state, parts = read_adapter(paths.adapter), read_adapter(again.adapter)
    assert all(torch.equal(state.modules[p].tensors["up"], parts.modules[p].tensors["up"]) for p in state.modules)
    assert {path.partition(".")[0] for path in state.modules} == set(load_family(Model(base=str(base))).models)

    studio = Studio(str(base), device="cpu")
    before = pixels(generate(studio))
    studio.add_adapter("one", paths.adapter, scale=1.0)
    studio.add_adapter("two", again.adapter, scale=-0.5)
    mixed = pixels(generate(studio))
    assert np.abs(mixed - before).max() > 1
    studio.remove_adapter("two")
    single = pixels(generate(studio))
    for format in FORMATS:
        file = tmp_path / f"{format}.safetensors"
        write_adapter(state, file, format)
        pipeline = alone(base)
        pipeline.load_lora_weights(str(file))
        assert np.abs(pixels(plain(pipeline, negative_prompt="")) - single).max() <= 1
        back = read_adapter(file)
        assert back.modules.keys() == state.modules.keys()


def test_an_adapter_of_another_family_is_refused_by_name(family, base):
    width, name = {"sd1": (1024, "SD 2.x"), "sd2": (2048, "SDXL"), "sdxl": (768, "SD 1.x")}[family]
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    state = AdapterState("lora", {path: ModuleState({"down": torch.ones(2, width), "up": torch.ones(16, 2)}, 2.0)})
    studio = Studio(str(base), device="cpu")
    ours = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}[family]
    with pytest.raises(MismatchError, match=f"other: is for {name}, the base is {ours}"):
        studio.add_adapter("other", state)
    assert studio.adapters == {}


@pytest.mark.parametrize(("family", "method"), every_method("dora"), indirect=["family"])  # LoRA: the test above.
def test_every_method_trains_resumes_and_draws(family, base, method, configure, tmp_path):
    config = configure(
        model__base=str(base), train__steps=4, sample__every=0, adapter__method=method, checkpoint__every=2,
        adapter__targets="linear+conv", train__learning_rate=1e-2,
    )  # fmt: skip
    whole, events, paths = train_in_process(config, tmp_path / "whole")
    stopped, *_ = train_in_process(config, tmp_path / "parts", stop_after=2)
    resumed, _, again = train_in_process(config, tmp_path / "parts")
    assert (whole, stopped, resumed) == (True, False, True)
    assert np.isfinite([event.loss for event in events if type(event) is StepDone]).all()
    state, parts = read_adapter(paths.adapter), read_adapter(again.adapter)
    assert state.method == method
    for path, module in state.modules.items():
        assert all(torch.equal(parts.modules[path].tensors[name], tensor) for name, tensor in module.tensors.items())
    studio = Studio(str(base), device="cpu")
    before = pixels(generate(studio))
    studio.add_adapter("one", paths.adapter)
    assert np.abs(pixels(generate(studio)) - before).max() > 1
    studio.set_scale("one", 0)
    assert np.array_equal(pixels(generate(studio)), before)


@pytest.mark.parametrize(("family", "method"), every_method("lora"), indirect=["family"])
def test_every_method_trains_over_a_bf16_base(family, base, method, configure, tmp_path):
    config = configure(
        model__base=str(base), train__steps=2, train__precision="bf16", adapter__targets="linear",
        adapter__method=method, sample__every=0,
    )  # fmt: skip
    finished, events, paths = train_in_process(config, tmp_path / "run")
    losses = [event.loss for event in events if type(event) is StepDone]
    assert finished and len(losses) == 2 and np.isfinite(losses).all()
    modules = read_adapter(paths.adapter).modules.values()
    assert {tensor.dtype for module in modules for tensor in module.tensors.values()} == {torch.float32}
    assert method != "lora" or any(module.tensors["up"].abs().max() > 0 for module in modules)


def test_in_half_precision_sdxls_vae_stays_as_it_is(family, base):
    loaded = load_family(Model(base=str(base))).to(dtype=torch.float16)
    assert {model.dtype for model in loaded.models.values()} == {torch.float16}
    assert loaded.vae.dtype == (torch.float32 if family == "sdxl" else torch.float16)


def test_the_second_encoder_reads_what_its_own_tokenizer_gives():
    pipeline = tiny_pipeline(family="sdxl")
    loaded = SDXL(pipeline, "tiny")
    ids = loaded.tokenize([PROMPT, "", "a blue cat"])
    own = pipeline.tokenizer_2(
        [PROMPT, "", "a blue cat"], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(loaded._repad(ids), own)
    assert not torch.equal(ids, own)


def test_a_prediction_walks_over_no_layers_to_learn_its_precision(family, base, monkeypatch):
    """diffusers' ``dtype`` looks at every one of them: several milliseconds at each step."""
    loaded = load_family(Model(base=str(base))).to(dtype=torch.bfloat16)
    read = loaded.encode_text(loaded.tokenize([PROMPT]))
    asked = property(lambda unet: pytest.fail("asked for its dtype"))
    monkeypatch.setattr(type(loaded.denoiser_module), "dtype", asked)
    with torch.no_grad():
        assert loaded.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), read).dtype == torch.bfloat16


def test_sdxl_is_told_how_a_picture_was_cut():
    loaded = SDXL(tiny_pipeline(family="sdxl"), "tiny")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    read = loaded.encode_text(loaded.tokenize([PROMPT]))
    assert loaded._sizes(latents, None).tolist() == [[64, 64, 0, 0, 64, 64]]
    with torch.no_grad():
        whole, same, cut = (
            loaded.predict(latents, torch.tensor([500]), read, framing)
            for framing in (None, torch.tensor([[64, 64, 0, 0]]), torch.tensor([[480, 640, 0, 40]]))
        )
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, cut)


@pytest.mark.parametrize(
    ("picture", "size", "position", "flip", "expected"),
    [
        ((640, 480), (64, 64), 0.5, False, (480, 640, 0, 10)),  # 85 x 64, ten pixels off on the left
        ((640, 480), (64, 64), 1.0, False, (480, 640, 0, 21)),
        ((640, 480), (64, 64), 1.0, True, (480, 640, 0, 0)),
        ((480, 640), (64, 64), 0.5, False, (640, 480, 10, 0)),
        ((64, 64), (64, 64), 0.5, False, (64, 64, 0, 0)),
    ],
)
def test_framing_is_the_pictures_own_size_and_where_it_is_cut(picture, size, position, flip, expected):
    assert size_and_crop(ImageSize(*picture), ImageSize(*size), position, flip) == expected


def test_zero_terminal_snr_is_diffusers_own():
    config = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    found = alphas_cumprod({**config, "rescale_betas_zero_snr": True})
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert found[-1] == 0
    assert torch.allclose(found, torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0), atol=1e-12)


def test_what_a_base_predicts_can_be_said_where_it_does_not_say_it(tmp_path):
    base = str(write_tiny_model(tmp_path / "sd1", "sd1"))
    overridden = load_family(Model(base=base, prediction_type="v_prediction", zero_terminal_snr="on"))
    assert overridden.prediction_type == "v_prediction"
    assert overridden.scheduler_config["rescale_betas_zero_snr"] is True
    with pytest.raises(ModelError, match="zero terminal SNR"):
        load_family(Model(base=base, zero_terminal_snr="on"))


def test_what_is_said_of_a_base_reaches_samplers_where_its_file_leaves_it_out(tmp_path):
    """diffusers drops entries that it takes for defaults when another scheduler is made of a config."""
    base = write_tiny_model(tmp_path / "sd1", "sd1")
    file = base / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps(config))
    overridden = load_family(Model(base=str(base), prediction_type="v_prediction", zero_terminal_snr="on"))
    for sampler in ("DPM++ 2M", "Euler", "DDIM"):
        made = make_scheduler(sampler, overridden.process).config
        assert (made.prediction_type, made.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DDIM", "DPM++ 2M", "UniPC", "Heun"])
def test_a_sampler_that_knows_no_zero_snr_is_refused(sampler):
    config = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    }  # fmt: skip
    if sampler == "Heun":
        with pytest.raises(ConfigError, match="Euler"):
            make_scheduler(sampler, DDPMProcess(config))
    else:
        scheduler = make_scheduler(sampler, DDPMProcess(config))
        assert scheduler.config.rescale_betas_zero_snr
        assert scheduler.config.timestep_spacing == "trailing"
