"""Models that compare images: small random ones of the true classes, found and loaded as real ones are."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.evaluation.encoder_sources import (
    HUB_CLIP,
    HUB_DINO,
    EncoderNames,
    choose_encoders,
    fetch_encoders,
    locate_encoder,
    missing_encoders,
    require_encoders,
)
from sdlora.evaluation.encoders import Dinov2, load_encoders
from sdlora.evaluation.fidelity import POCKET_CLIP
from sdlora.events import ignore
from tests.support.single_file_checkpoints import fill_hub_cache
from tests.support.tiny_encoders import write_tiny_dinov2
from tests.support.tiny_models import write_tiny_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A tiny DINOv2. Read only."""
    return write_tiny_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP. Read only."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def load(encoder, clip, kind="style"):
    return load_encoders(fetch_encoders(EncoderNames(str(encoder), str(clip)), ignore), kind, CPU)


def noise(width, height, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", [(32, 32), (90, 50), (33, 70)])
def test_a_dinov2_gets_what_transformers_own_processor_gives_it(dinov2, size):
    """The processor that DINOv2's repositories name, in its Pillow form; then the model's own pooled output."""
    from transformers import Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    image = noise(*size, seed=1)
    values = json.loads((dinov2 / "preprocessor_config.json").read_text())
    pixels = BitImageProcessorPil(**values)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2).eval()(pixel_values=pixels).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=1)
    assert torch.allclose(Dinov2(dinov2, CPU)([image]), expected, atol=1e-4)


def test_features_are_unit_vectors_whatever_the_batch(dinov2):
    images, encoder = [noise(40, 50, seed) for seed in range(3)], Dinov2(dinov2, CPU, batch=2)
    found = encoder(images)
    assert found.shape == (3, 16) and torch.allclose(found.norm(dim=1), torch.ones(3))
    assert torch.allclose(found[2:], encoder(images[2:]), atol=1e-5)


def test_the_bundled_clip_tells_subjects_by_the_middle_of_its_tower():
    style, subject = (load("pocket", "pocket", kind) for kind in ("style", "subject"))
    images = [noise(64, 64, 1)]
    assert torch.equal(style.features(images), style.clip.images(images))
    assert torch.equal(subject.features(images), subject.clip.subjects(images))


def test_a_folder_is_loaded_as_what_its_config_says(dinov2, clip):
    images = [noise(64, 64, 1)]
    found = load(dinov2, clip, "subject")
    assert isinstance(found.features, Dinov2) and found.clip.images(images).shape == (1, 16)
    by_clip = load(clip, clip, "subject")
    assert torch.equal(by_clip.features(images), by_clip.clip.images(images))
    assert locate_encoder("pocket").folder == POCKET_CLIP


def test_a_base_has_models_that_suit_it_and_named_ones_stay():
    assert choose_encoders("pocket", "subject") == ("pocket", "pocket")
    assert choose_encoders("some/base", "style") == (HUB_CLIP, HUB_CLIP)
    assert choose_encoders("some/base", "subject") == (HUB_DINO, HUB_CLIP)
    assert choose_encoders("pocket", "style", "a", "b") == ("a", "b")


def test_a_dinov2_cannot_read_prompts(dinov2):
    with pytest.raises(ModelError, match="reads no prompts; give a CLIP"):
        load(dinov2, dinov2)
    with pytest.raises(ModelError, match="reads no prompts; give a CLIP"):
        require_encoders(EncoderNames("pocket", str(dinov2)))


@pytest.mark.parametrize("name", ["no such", "a.bin", "gone/a/b", "x.safetensors"])
def test_what_is_no_name_of_a_model_is_refused(name):
    with pytest.raises(ModelError) as error:
        load(name, name)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError):
        require_encoders(EncoderNames("pocket", name))


def test_a_hub_that_cannot_be_reached_is_one_sentence():
    require_encoders(EncoderNames(HUB_DINO, "pocket"))  # Nothing is asked for yet.
    with pytest.raises(ModelError, match="facebook/dinov2-base: HF_HUB_OFFLINE is set and nothing is cached"):
        load(HUB_DINO, "pocket", "subject")


@pytest.mark.parametrize(
    ("file", "entry", "message"),
    [("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "never run"),
     ("config.json", {"model_type": "vit"}, "compares no images here"),
     ("preprocessor_config.json", {"size": {"height": 32}}, "names no sizes and levels"),
     ("preprocessor_config.json", {"crop_size": {"height": 10**6}}, "fit no DINOv2"),
     ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "fit no DINOv2"),
     ("preprocessor_config.json", {"image_std": [1, 1]}, "names no sizes and levels")],
)  # fmt: skip
def test_configs_that_ask_for_code_or_make_no_sense_are_refused(tmp_path, clip, file, entry, message):
    folder = write_tiny_dinov2(tmp_path / "copy")
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **entry}))
    with pytest.raises(ModelError, match=message):
        load(folder, clip)


def test_weights_come_from_safetensors_alone(tmp_path, clip):
    folder = write_tiny_dinov2(tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has only \.bin files, which can run code"):
        load(folder, clip)


def test_a_model_that_lacks_tensors_is_refused(tmp_path, clip):
    from safetensors.torch import load_file, save_file

    folder = write_tiny_dinov2(tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors of a DINOv2, such as layernorm\.weight"):
        load(folder, clip)


def test_only_what_is_neither_bundled_nor_here_is_missing(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert missing_encoders(EncoderNames(HUB_DINO, HUB_CLIP)) == [HUB_DINO, HUB_CLIP]
    assert missing_encoders(EncoderNames(HUB_CLIP, HUB_CLIP)) == [HUB_CLIP]
    assert missing_encoders(EncoderNames("pocket", str(clip))) == []
    fill_hub_cache(tmp_path, HUB_CLIP, clip)
    assert missing_encoders(EncoderNames(HUB_DINO, HUB_CLIP)) == [HUB_DINO]
    for weights in tmp_path.rglob("model*.safetensors"):
        weights.unlink()  # As after a download that was interrupted.
    assert missing_encoders(EncoderNames(HUB_CLIP, HUB_CLIP)) == [HUB_CLIP]
