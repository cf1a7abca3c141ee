"""The export loads without our code: float32 everywhere, the text encoder equal to CLIP's tower, classic names."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from tools.pocket import clip, export, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    words, out = tokenizer.build(), tmp_path_factory.mktemp("pocket")
    towers = clip.build(words).eval()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    export.write_pipeline(unet, vae, towers, words, 0.5, out)
    export.write_clip(towers, words, out / "clip")
    return out, towers


def test_the_pipeline_loads_plainly_and_draws(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder[0])
    assert {p.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()} == {
        torch.float32
    }
    assert pipeline.vae.config.scaling_factor == 0.5 and pipeline.scheduler.config.prediction_type == "epsilon"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a sks cat", num_inference_steps=2, output_type="np").images.shape[-1] == 3


def test_a_model_that_was_loaded_does_not_say_from_where(folder, tmp_path):
    """Weights of another version are trained from those of this one, in somebody's folder."""
    words, parts = CLIPTokenizer.from_pretrained(folder[0] / "tokenizer"), (UNet2DConditionModel, AutoencoderKL)
    again = [part.from_pretrained(folder[0] / name) for name, part in zip(("unet", "vae"), parts, strict=True)]
    export.write_pipeline(*again, folder[1], words, 0.5, tmp_path)
    for name in ("unet", "vae"):
        first, second = (out / name / "config.json" for out in (folder[0], tmp_path))
        assert first.read_text() == second.read_text()


def test_the_text_encoder_is_the_clip_tower_under_its_classic_names(folder):
    out, towers = folder
    weights = load_file(out / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in weights)
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    ids = clip.tokens(pipeline.tokenizer, ["a red house on grass"])
    with torch.no_grad():
        loaded, true = pipeline.text_encoder(ids).last_hidden_state, towers.text_model(ids).last_hidden_state
    # float16 on disk: eleven bits, and four layers.
    assert (loaded - true).abs().max() < 5e-3


def test_the_clip_loads_as_clip(folder):
    out, towers = folder
    model = CLIPModel.from_pretrained(out / "clip")
    words = CLIPTokenizer.from_pretrained(out / "clip")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert words.tokenize("sks") == ["sks</w>"]
    assert torch.allclose(model.logit_scale, towers.logit_scale, atol=1e-3)
