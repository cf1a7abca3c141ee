import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.evaluation.fidelity import Clip, clip_i, clip_t, likeness, likeness_within
from tests.support.tiny_models import write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(write_tiny_clip(tmp_path_factory.mktemp("clip")), batch=2)


def noise(width, height, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (50, 33), (17, 61), (200, 101)])
def test_pictures_are_prepared_as_transformers_does(clip, size):
    """transformers' own CLIP processor, in its Pillow form."""
    from transformers import CLIPImageProcessor

    image = noise(*size, seed=1)
    mean, deviation = [0.5, 0.4, 0.3], [0.3, 0.25, 0.2]
    own = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=mean, image_std=deviation
    )
    expected = torch.as_tensor(np.stack(own(image)["pixel_values"]))
    assert torch.allclose(clip._pixels([image]), expected, atol=1e-5)


def test_features_are_unit_vectors_whatever_the_batch(clip):
    images = [noise(40, 40, seed) for seed in range(5)]
    together = clip.images(images)
    assert together.shape == (5, 16)
    assert torch.allclose(together.norm(dim=1), torch.ones(5))
    assert torch.allclose(together[3:4], clip.images(images[3:4]), atol=1e-5)
    texts = clip.texts(["a red house", "a cat", "a " * 200])
    assert texts.shape == (3, 16) and torch.allclose(texts.norm(dim=1), torch.ones(3))
    assert torch.allclose(texts[1:2], clip.texts(["a cat"]), atol=1e-5)


def test_features_agree_with_the_whole_model(clip):
    """CLIPModel's own forward pass: its similarities are the cosines times its logit scale."""
    images, texts = [noise(32, 32, seed) for seed in range(2)], ["a red house", "a cat in snow"]
    ids = clip.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = clip.model(input_ids=ids, pixel_values=clip._pixels(images))
    cosines = clip.images(images) @ clip.texts(texts).T
    assert torch.allclose(whole.logits_per_image / clip.model.logit_scale.exp(), cosines, atol=1e-5)


def test_subject_features_are_the_class_tokens_around_the_middle(clip):
    """The pooled output of a tower cut off behind a layer is that layer's token, normalised."""
    images = [noise(32, 32, seed) for seed in range(3)]
    found = clip.subjects(images)
    layers, tokens = clip.model.vision_model.encoder.layers, []
    for count in (len(layers) // 2, (len(layers) + 1) // 2):
        assert 0 < count < len(layers)
        try:
            clip.model.vision_model.encoder.layers = torch.nn.ModuleList(layers[:count])
            with torch.no_grad():
                cut = clip.model.vision_model(pixel_values=clip._pixels(images)).pooler_output
        finally:
            clip.model.vision_model.encoder.layers = layers
        tokens.append(torch.nn.functional.normalize(cut, dim=1))
    assert torch.allclose(found, torch.nn.functional.normalize(torch.cat(tokens, 1), dim=1), atol=1e-5)


EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def test_measures_by_hand():
    """Cosines of the axes are 0, of a vector with itself 1, of an axis with the diagonal 1/sqrt(2)."""
    both = torch.stack([EAST, NORTH])
    assert clip_i(both, both) == pytest.approx(0.5)
    assert clip_t(both, both) == pytest.approx(1.0)
    assert clip_t(both, both.flip(0)) == pytest.approx(0.0)
    assert likeness(both, both).tolist() == pytest.approx([0.5**0.5] * 2)
    assert likeness_within(torch.stack([EAST, EAST, NORTH])).tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.0])
    with pytest.raises(ValueError, match="one prompt an image"):
        clip_t(both, both[:1])
    with pytest.raises(ValueError, match="no others"):
        likeness_within(both[:1])


def test_a_folder_without_clip_is_named(tmp_path):
    with pytest.raises(ModelError, match="no folder with a CLIP"):
        Clip(tmp_path)
