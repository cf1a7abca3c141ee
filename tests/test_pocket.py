"""The bundled base model: a plain Stable Diffusion 1.x to every tool, small on disk."""

import logging

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from sdlora.cli.main import main
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.generation.studio import Studio

POCKET = BUNDLED["pocket"]


class Kept(logging.Handler):
    """Collect the libraries' messages at the level of warnings or above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def plain():
    """The pipeline as anyone loads it, without a single option, and what the libraries said meanwhile."""
    from diffusers import StableDiffusionPipeline

    kept, loggers = Kept(), [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(kept)
    pipeline = StableDiffusionPipeline.from_pretrained(POCKET)
    for logger in loggers:
        logger.removeHandler(kept)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, kept.messages


def test_it_loads_plainly_without_a_checker_or_a_warning(plain):
    pipeline, messages = plain
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.safety_checker is None
    assert messages == []


def test_it_draws_at_its_own_size_from_latents_of_an_eighth(plain):
    pipeline, _ = plain
    shapes = []

    def keep(pipeline, step, timestep, values):
        shapes.append(tuple(values["latents"].shape))
        return values

    generator = torch.Generator().manual_seed(0)
    pixels = pipeline(
        "a red house on grass", num_inference_steps=1, generator=generator, output_type="np", callback_on_step_end=keep
    ).images
    assert pixels.shape == (1, 128, 128, 3)
    assert shapes == [(1, 4, 16, 16)]
    assert pixels.std() > 0.01  # something, not one colour


def test_its_scheduler_is_that_of_stable_diffusion_1(plain):
    """The numbers are those of CompVis' v1-inference.yaml, which loaders that read no config assume."""
    pipeline, _ = plain
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.beta_schedule) == ("epsilon", "scaled_linear")
    assert (config.beta_start, config.beta_end, config.num_train_timesteps) == (0.00085, 0.012, 1000)
    assert pipeline.vae_scale_factor == 8


def test_every_weight_is_kept_in_half_precision():
    files = sorted(POCKET.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"clip", "text_encoder", "unet", "vae"}
    for file in files:
        header = read_safetensors_header(file)
        assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}, file


def test_it_stays_small():
    def megabytes(folder):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6

    assert 1 < megabytes(POCKET / "clip") <= 12
    assert 10 < megabytes(POCKET) <= 40


@pytest.mark.parametrize("trigger", ["sks", "ohwx"])
def test_the_usual_triggers_are_one_token(plain, trigger):
    tokenizer = plain[0].tokenizer
    assert tokenizer.tokenize(trigger) == [f"{trigger}</w>"]
    start, token, end = tokenizer(trigger).input_ids
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert token != tokenizer.unk_token_id


def test_its_clip_loads_plainly_and_tells_two_captions_apart():
    clip = CLIPModel.from_pretrained(POCKET / "clip")
    tokens = CLIPTokenizer.from_pretrained(POCKET / "clip")(["a red house", "a blue cat"], return_tensors="pt")
    with torch.no_grad():
        pooled = clip.text_model(**tokens).pooler_output
    assert pooled.shape[0] == 2
    assert torch.nn.functional.cosine_similarity(*clip.text_projection(pooled), dim=0) < 0.9


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The file of its own preset, cut to two steps that go far."""
    data_dir = tmp_path_factory.mktemp("data")
    settings = ["--train.steps=2", "--train.batch_size=1", "--train.learning_rate=1e-2", "--sample.every=0"]
    where = ["--name", "mine", "--data-dir", str(data_dir), "--train.device", "cpu"]
    assert main(["train", "pocket-style", *where, *settings]) == 0
    return data_dir / "runs" / "mine" / "adapter.safetensors"


def test_an_adapter_trained_by_its_preset_changes_what_it_draws_and_at_scale_zero_nothing(adapter):
    studio = Studio("pocket", device="cpu")

    def draw():
        return np.asarray(studio.generate("ohwx style, a red house on grass", steps=2, seed=3)[0])

    base = draw()
    studio.add_adapter("mine", adapter)
    assert (draw() != base).any()
    studio.set_scale("mine", 0)
    assert (draw() == base).all()


@torch.no_grad()
def test_a_plain_pipeline_computes_with_its_adapter_what_we_do(adapter, plain):
    pipeline, _ = plain
    studio = Studio("pocket", device="cpu")
    studio.add_adapter("mine", adapter)
    family = studio.family
    latents, timesteps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    captions = ["ohwx style, a red house on grass", ""]

    def theirs():
        text, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
        return pipeline.unet(latents, timesteps, text).sample

    base = theirs()
    pipeline.load_lora_weights(adapter)
    adapted = theirs()
    pipeline.unload_lora_weights()
    ours = family.predict(latents, timesteps, family.encode_text(family.tokenize(captions)))
    torch.testing.assert_close(adapted, ours, rtol=0, atol=1e-5)
    assert (adapted - base).abs().max() > 1e-2
