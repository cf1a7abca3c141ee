"""A family that is declared here alone goes through the program: a flow transformer with a denoiser of another name."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors import safe_open
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.adapters.attach import remove_adapter
from sdlora.adapters.state import AdapterState
from sdlora.adapters.targets import select_layers, split_targets
from sdlora.config import TrainConfig
from sdlora.diffusion.process import NoiseProcess, sample_fraction
from sdlora.errors import ConfigError, ModelError
from sdlora.families import FAMILIES
from sdlora.families.adapter_naming import AdapterNaming, BaseNames, LayerNaming
from sdlora.families.base import (
    CLIP_LAYERS,
    CLIP_TARGETS,
    TOKENIZER,
    Component,
    Conditioning,
    Family,
    weights_fingerprint,
)
from sdlora.families.detect import detect_folder, folder_size
from sdlora.families.lazy_modules import LazyModules
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats import inspect_adapter, read_adapter, write_adapter
from sdlora.formats.header_summary import read_header_summary
from sdlora.formats.infer_base import infer_family
from sdlora.formats.storage import WRITTEN
from sdlora.generation.axes import parse_axis
from sdlora.generation.generation_spec import SamplingParams
from sdlora.generation.infotext import parse_parameters
from sdlora.generation.settings import ImageSettings, Prior, Sample
from sdlora.generation.studio import Studio
from sdlora.generation.xyz_grid import GridCell, ImageGrid, grid_cells, read_grid, write_declaration
from sdlora.inference.generation_request import GenerationRequest
from sdlora.training.distributed import Distributed
from sdlora.training.memory_estimate import estimate_memory, largest_size
from sdlora.training.prepare import TRAINED_ADAPTER, attach_method, is_text, prepare_training
from sdlora.training.run_paths import RunPaths
from sdlora.training.save_adapter import save_a1111_card, save_adapter
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import TrainLoop
from tests.support.tiny_models import tiny_clip_text_config, tiny_tokenizer

WIDTH = 16
ATTENTION = r"transformer_blocks\..*\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"


STEPS = (
    "transformer_blocks", "attn", "to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj",
    "add_v_proj", "ff", "ff_context", "net", "proj",
)  # fmt: skip


class Flow(NoiseProcess):
    """Rectified flow (SD 3, arXiv:2403.03206): x_t = (1 - s) x_0 + s ε with s = t / 1000, target ε - x_0."""

    prediction_type = "flow_prediction"
    num_train_timesteps = 1000
    title = "a flow model"

    def sample_time(self, sampling, span, seed, number, position, generator):
        first, last = span[0], self.num_train_timesteps if span[1] is None else span[1]
        uniform = sampling == "uniform"
        share = torch.rand(1, generator=generator) if uniform else sample_fraction(
            sampling, seed, number, position, generator
        )  # fmt: skip
        return (first + share * (last - first)).float()

    def add_noise(self, latents, noise, times):
        s = (times / self.num_train_timesteps)[:, None, None, None]
        return (1 - s) * latents + s * noise

    def target(self, latents, noise, times):
        return noise - latents

    def weight(self, times, weighting="uniform", min_snr_gamma=None):
        return torch.ones_like(times)

    def check_weighting(self, weighting, min_snr_gamma):
        if weighting != "uniform" or min_snr_gamma is not None:
            raise ConfigError("loss: a flow model has no signal-to-noise weighting; leave it out")

    def scheduler(self, kind, options):
        return FlowMatchEulerDiscreteScheduler()

    def supports_scheduler(self, kind):
        return kind == "EulerDiscreteScheduler"


class Toy(Family):
    """A tiny SD 3 transformer with latents of three channels and one text encoder."""

    name = "toy"
    title = "Toy"
    preset = "toy"
    tokenizers = {"tokenizer": "text_encoder"}
    denoiser = "transformer"
    latent_channels = 3
    pipelines = ("ToyPipeline",)
    components = {
        "transformer": Component(
            "diffusers", ("SD3Transformer2DModel",), target_groups={"attention": ATTENTION, "linear": ".*"},
            layers=LayerNaming(steps=STEPS, roots=("transformer_blocks",), text_inputs=(".add_k_proj", ".add_v_proj")),
        ),
        "vae": Component("diffusers", ("AutoencoderKL",)),
        "text_encoder": Component(
            "transformers", ("CLIPTextModelWithProjection",), target_groups=CLIP_TARGETS, layers=CLIP_LAYERS
        ),
        "tokenizer": TOKENIZER,
    }  # fmt: skip
    adapter_naming = AdapterNaming(
        prefixes={"transformer": "lora_unet", "text_encoder": "lora_te1"},  # As sd-scripts calls any denoiser.
        bases={"flow_prediction": BaseNames("toy_medium", "toy-v1", "Toy")},
        network_module="networks.lora_toy",
        version_prefix="toy",
    )
    generation_defaults = {"steps": 2, "cfg": 3.0, "sampler": "Euler"}
    process = Flow()
    scheduler_config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    native_size, latent_factor, size_step, tile_size = 64, 8, 16, 64

    @classmethod
    def from_meta(cls, modules, scheduler_config, source, schedule=None):
        found = cls()
        found.source, found.modules, found.fingerprints = source, LazyModules(modules), {}
        found._tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=0, pad_token_id=0)
        return found

    @classmethod
    def load(cls, folder, source, *options, **named):
        found = cls()
        found.source = source
        modules = {
            "transformer": SD3Transformer2DModel.from_pretrained(Path(folder) / "transformer"),
            "text_encoder": CLIPTextModelWithProjection.from_pretrained(Path(folder) / "text_encoder"),
            "vae": AutoencoderKL.from_pretrained(Path(folder) / "vae"),
        }
        found._tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
        for module in modules.values():
            module.requires_grad_(False).eval()
        found.modules = LazyModules(modules)
        found.fingerprints = {name: weights_fingerprint(module) for name, module in modules.items()}
        return found

    def tokenize(self, prompts):
        return self._tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids

    def token_ids_without_special(self, text):
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def build_input_ids(self, tokens):
        marked = [self._tokenizer.bos_token_id, *tokens, self._tokenizer.eos_token_id]
        return torch.tensor([marked + [self._tokenizer.pad_token_id] * (77 - len(marked))])

    text_layers = 1

    def encode_text(self, ids, clip_skip=1):
        encoder = self.modules["text_encoder"]
        read = encoder(ids.to(encoder.device), output_hidden_states=True)
        return Conditioning(read.hidden_states[-2], read.text_embeds)

    def encode_images(self, pixels):
        found = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return found.mean.float(), found.std.float()

    def decode(self, latents):
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def predict(self, latents, times, conditioning, size_and_crop=None):
        read = conditioning.to(self.dtype)
        return self.denoiser_module(latents.to(self.dtype), read.text, read.pooled, times, return_dict=False)[0]

    def pipeline_kwargs(self, wanted, unwanted):
        return {"wanted": wanted, "unwanted": unwanted}

    def pipeline(self, scheduler):
        return ToyPipeline(self, scheduler)

    def prediction_bytes(self, width, height, batch):
        return batch * width * height

    def decode_bytes(self, width, height):
        return width * height


class ToyPipeline:
    def __init__(self, family, scheduler):
        self.family, self.scheduler = family, scheduler

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, wanted, unwanted, latents, num_inference_steps, guidance_scale, callback_on_step_end, **others):
        self.scheduler.set_timesteps(num_inference_steps)
        self.num_timesteps = num_inference_steps
        for index, time in enumerate(self.scheduler.timesteps):
            times = time.expand(len(latents))
            prediction = self.family.predict(latents, times, wanted)
            if unwanted is not None:
                base = self.family.predict(latents, times, unwanted)
                prediction = base + guidance_scale * (prediction - base)
            latents = self.scheduler.step(prediction, time, latents, return_dict=False)[0]
            callback_on_step_end(self, index, time, {})
        return SimpleNamespace(images=latents)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of the toy family, with random weights."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "transformer": SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=WIDTH,
                pooled_projection_dim=WIDTH, pos_embed_max_size=16,
            ),
            "vae": AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(4, 4, 8, 8), norm_num_groups=4,
                layers_per_block=1, sample_size=64,
            ),
            "text_encoder": CLIPTextModelWithProjection(tiny_clip_text_config(tokenizer, WIDTH)),
            "tokenizer": tokenizer,
            "scheduler": FlowMatchEulerDiscreteScheduler(),
        }  # fmt: skip
    folder = tmp_path_factory.mktemp("toy")
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {
        name: [type(part).__module__.partition(".")[0], type(part).__name__.replace("TokenizerFast", "Tokenizer")]
        for name, part in parts.items()
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline", **index}))
    return folder


@pytest.fixture
def toy(folder, monkeypatch):
    """The folder, while the family has its row."""
    monkeypatch.setitem(FAMILIES.ROWS, "toy", (__name__, "Toy"))
    return folder


def build_job(config, output):
    return TrainJob(**dict(config), output=output, cache=output.folder / "cache")


def test_without_its_row_the_family_is_unknown(folder):
    with pytest.raises(ModelError):
        load_family(Model(base=str(folder)))
    with pytest.raises(ValueError):
        split_targets("transformer.transformer_blocks")


def test_its_declarations_are_read_without_loading_it(toy):
    assert detect_folder(toy) == "toy"
    assert folder_size(toy) == 64
    assert split_targets("attention, transformer.transformer_blocks.0") == [
        "attention", "transformer.transformer_blocks.0",
    ]  # fmt: skip
    models = build_meta_model(str(toy)).models
    assert [*models] == ["transformer", "text_encoder"]
    paths = select_layers(models, "attention", text_encoder=False)
    assert len(paths) == 2 * 8 - 1  # Two joint blocks; the last has no way out for the text.
    assert all(path.startswith("transformer.transformer_blocks.") for path in paths)


def test_it_trains_saves_and_generates_through_the_programs_own_code(toy, configure, tmp_path):
    config = configure(
        model__base=str(toy), adapter__targets="attention", train__steps=2, train__learning_rate=0.1,
        checkpoint__every=0, sample__every=0,
    )  # fmt: skip
    output = RunPaths(tmp_path / "run")
    output.folder.mkdir()
    job = build_job(config, output)
    devices = Distributed.setup(job.train, job.output)
    train_state = prepare_training(job, devices)
    assert type(train_state.family) is Toy
    assert train_state.latents is not None and train_state.trained.trains_text
    trained = train_state.trained.parameters
    before = [parameter.detach().clone() for parameter in trained]
    loop = TrainLoop(job, devices, train_state)
    assert all(loop.step(step) > 0 for step in range(2))
    moved = {id(new) for old, new in zip(before, trained, strict=True) if not torch.equal(old, new)}
    text = {id(part.parameter) for part in train_state.trained.parts if is_text(part.path)}
    assert moved & text and moved - text
    studio = Studio.from_family(train_state.family)
    options = {"seed": 1}  # Steps, sampler and guidance are the family's own.
    adapted = studio.generate("a red house", **options)[0]
    made = parse_parameters(adapted.info["parameters"]).settings
    assert (made["Steps"], made["Sampler"], made["CFG scale"]) == ("2", "Euler", "3")
    path = tmp_path / "trained.safetensors"
    save_adapter(path, train_state, job, step=2)
    save_a1111_card(path, train_state, job, 1)
    remove_adapter(train_state.family.models, TRAINED_ADAPTER)
    plain = studio.generate("a red house", **options)[0]
    assert adapted.size == plain.size == (64, 64)
    assert adapted.tobytes() != plain.tobytes()
    require_saved_for_toy(path)
    for format in WRITTEN:
        copy = tmp_path / f"copy-{format}{'' if format == 'peft' else '.safetensors'}"
        write_adapter(read_adapter(path), copy, format)
        assert inspect_adapter(copy).family == "toy"
        again = Studio(str(toy), device="cpu")
        again.add_adapter("trained", copy)
        assert again.generate("a red house", **options)[0].tobytes() == adapted.tobytes()


def require_saved_for_toy(path):
    """Require a file with the family's own names, which are known to be its own by any of its parts."""
    header, summary, state = read_metadata(path), read_header_summary(path), read_adapter(path)
    assert header["ss_base_model_version"] == "toy_medium" and header["ss_v2"] == "False"
    assert header["ss_network_module"] == "networks.lora_toy"
    assert header["modelspec.architecture"] == "toy-v1/lora"
    assert json.loads(path.with_suffix(".json").read_text())["sd version"] == "Toy"
    assert summary.family == "toy" and summary.format == "kohya"
    with safe_open(path, "pt") as file:
        assert {key.split(".")[0].rpartition("blocks_")[0] for key in file.keys() if "attn_to_q" in key} == {  # noqa: SIM118
            "lora_unet_transformer_"
        }
    for component, metadata in (("transformer", {}), ("text_encoder", header)):
        own = {path: module for path, module in state.modules.items() if path.startswith(f"{component}.")}
        assert own and infer_family(AdapterState("lora", own, metadata)) == "toy"


def test_its_memory_is_estimated_without_its_weights(toy, configure, tmp_path):
    config = configure(model__base=str(toy), adapter__targets="attention", train__batch_size=2)
    job = build_job(config, RunPaths(tmp_path / "run"))
    size = largest_size(job)
    found = {quantize: estimate_memory(replace(job, model=job.model.model_copy(update={"quantize": quantize})), size,
                                       torch.float32) for quantize in (None, "int8")}  # fmt: skip
    family = load_family(job.model)
    attach_method(job, family, from_file=False)
    modules = family.modules.values()
    weights = sum(one.nbytes for module in modules for one in (*module.parameters(), *module.buffers()))
    assert found[None].weights == weights
    assert found["int8"].weights < found[None].weights < found[None].step
    assert found[None].encoding > 0


def resolved(settings, **changes):
    params = SamplingParams.resolve(Toy(), settings, **changes)
    return params.steps, params.cfg, params.sampler


def test_its_usual_settings_replace_defaults_that_nobody_has_set(tmp_path):
    assert resolved(ImageSettings()) == resolved(Sample()) == resolved(Prior()) == (2, 3.0, "Euler")
    assert resolved(ImageSettings(steps=25)) == (25, 3.0, "Euler")
    assert resolved(ImageSettings(), steps=7) == (7, 3.0, "Euler")
    preset = tmp_path / "own.toml"
    preset.write_text('[data]\nfolder = "."\n[sample]\nsteps = 9\n')
    assert resolved(TrainConfig.load(preset).sample) == (9, 3.0, "Euler")
    TrainConfig.load(preset).save(tmp_path / "run.toml")
    assert resolved(TrainConfig.load(tmp_path / "run.toml").sample) == (9, 3.0, "Euler")


def test_a_request_and_a_grid_keep_what_was_left_to_the_family(tmp_path):
    request = GenerationRequest.checked(prompt="a red house", steps=9)
    again = GenerationRequest.model_validate_json(json.dumps(request.to_json()))
    assert again == request and resolved(again) == (9, 3.0, "Euler")
    axis = parse_axis("cfg", "1, 2")
    cells = grid_cells(GridCell.from_section(again, seed=1), [axis])
    folder = write_declaration(ImageGrid((axis,), cells, {}), tmp_path)
    assert [resolved(cell) for cell in read_grid(folder).cells] == [(9, 1.0, "Euler"), (9, 2.0, "Euler")]
    own = GenerationRequest.from_section(Sample())
    assert own.steps == Sample().steps and "cfg" not in own.model_fields_set


def test_what_its_process_does_not_define_is_refused_by_name(toy, configure, tmp_path):
    with pytest.raises(ConfigError, match="sampler 'DDIM': cannot generate with a flow model; take Euler"):
        Studio(str(toy), device="cpu").generate("a red house", sampler="DDIM")
    job = build_job(configure(model__base=str(toy), loss__min_snr_gamma=5.0), RunPaths(tmp_path))
    with pytest.raises(ConfigError, match="no signal-to-noise weighting"):
        prepare_training(job, Distributed.setup(job.train, job.output))
