"""Captions as the text encoder reads them in training: in chunks, by the layer asked for, as when generating."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sdlora.data.tensor_store import TensorStore
from sdlora.errors import ConfigError
from sdlora.families.base import Conditioning
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.generation.generation_spec import SamplingParams
from sdlora.generation.prompt_encoding import CaptionReader, join_chunks
from sdlora.generation.sampling import _encode_prompts
from sdlora.generation.settings import SamplingSettings
from sdlora.generation.studio import Studio
from sdlora.training.prepare import TrainState
from tests.support.training import assert_equal_files, train_in_process

LONG = ", ".join(f"red tag {number}" for number in range(40))
"""More than two chunks of 75 tokens."""


@pytest.fixture(scope="module")
def family(tiny_base):
    return load_family(Model(base=str(tiny_base)))


def generated(family, prompt):
    """Return the text that the denoiser reads of a prompt when generating."""
    params = SamplingParams.resolve(family, SamplingSettings(cfg=1.0))
    with torch.no_grad():
        return _encode_prompts(family, prompt, params)[0].text


@pytest.mark.parametrize("caption", ["a red house", "", LONG, "x" * 400], ids=["short", "none", "long", "one word"])
def test_a_caption_is_read_as_the_same_prompt_is(family, caption):
    reader = CaptionReader(family)
    with torch.no_grad():
        text = reader.read([caption], reader.count(caption), family.encode_text).text
    torch.testing.assert_close(text, generated(family, caption), atol=1e-6, rtol=1e-5)


def test_a_shorter_caption_is_filled_up_with_empty_chunks(family):
    reader = CaptionReader(family)
    chunks = reader.count(LONG)
    assert chunks > 2
    with torch.no_grad():
        both = reader.read(["a red house", LONG], chunks, family.encode_text).text
        short, empty = (generated(family, text) for text in ("a red house", ""))
    torch.testing.assert_close(both[:1], torch.cat([short] + [empty] * (chunks - 1), 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[1:], generated(family, LONG), atol=1e-6, rtol=1e-5)


def test_brackets_are_letters_unless_they_are_asked_to_be_weights(family):
    plain, weighted = CaptionReader(family), CaptionReader(family, weighted=True)
    with torch.no_grad():
        letters, weights = (each.read(["a (red:1.4) house"], 1, family.encode_text).text for each in (plain, weighted))
        assert torch.equal(letters, generated(family, r"a \(red:1.4\) house"))
        torch.testing.assert_close(weights, generated(family, "a (red:1.4) house"))
    assert not torch.equal(letters, weights)


def test_the_pooled_output_of_a_text_is_its_first_chunks():
    rows = Conditioning(torch.arange(12.0).reshape(4, 3, 1), torch.arange(4.0)[:, None])
    joined = join_chunks(rows, 2)
    assert joined.text.flatten(1).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert joined.pooled.tolist() == [[0], [2]]


@pytest.fixture
def captioned(configure, tmp_path, pictures):
    """Train on the pictures with other captions, and return the adapter's file."""

    def run(name, captions, **settings):
        folder = tmp_path / name
        folder.mkdir()
        for number, caption in enumerate(captions):
            (folder / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
            (folder / f"{number}.txt").write_text(caption)
        config = configure(data__folder=str(folder), data__trigger="", train__steps=2, **settings)
        return train_in_process(config, tmp_path / f"run-{name}")[2].adapter

    return run


@pytest.mark.parametrize("text_encoder", [False, True], ids=["cached", "live"])
def test_words_behind_token_75_are_learnt(captioned, text_encoder):
    same = [f"{LONG}, on grass", "a house", "a tree"]
    one, again = (captioned(name, same, adapter__text_encoder=text_encoder) for name in ("one", "again"))
    other = captioned("other", [f"{LONG}, on snow", *same[1:]], adapter__text_encoder=text_encoder)
    assert_equal_files(one, again)
    one, other = load_file(one), load_file(other)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_run_knows_its_tokens_of_class_images_beyond_the_first_chunk(family):
    """Short ones add nothing: a state that was saved before they were looked at still fits."""

    def tokens(own, classes):
        examples = [[SimpleNamespace(caption=caption) for caption in each] for each in (own, classes)]
        batches = SimpleNamespace(examples=examples[0], class_examples=examples[1])
        return TrainState._tokens(SimpleNamespace(batches=batches, reader=CaptionReader(family)))

    own = ["a red house", "a cat"]
    assert tokens(own, ["a dog"]) == tokens(own, []) == family.tokenize(own).tolist()
    assert tokens(own, [LONG])[:2] == tokens(own, []) and len(tokens(own, [LONG])) > 2


@pytest.mark.parametrize("text_encoder", [False, True], ids=["cached", "live"])
def test_an_earlier_text_layer_is_trained_with_and_recorded(captioned, text_encoder):
    captions = ["a red house", "a house", "a tree"]
    last, earlier = (
        captioned(f"layer{layer}", captions, train__clip_skip=layer, adapter__text_encoder=text_encoder)
        for layer in (1, 2)
    )
    assert "ss_clip_skip" not in read_metadata(last) and read_metadata(earlier)["ss_clip_skip"] == "2"
    one, other = load_file(last), load_file(earlier)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_what_a_layer_says_is_kept_apart_from_what_others_say(captioned, monkeypatch):
    """Both run on one cache."""
    written = []
    put = TensorStore.put
    monkeypatch.setattr(TensorStore, "put", lambda self, key, tensors: written.append(key) or put(self, key, tensors))
    for layer in (1, 2):
        captioned(f"layer{layer}", ["a red house", "a house", "a tree"], train__clip_skip=layer)
    assert len(written) == len({*written})


def test_a_layer_that_the_base_has_not_is_refused(captioned, family):
    limit = family.text_layers
    with pytest.raises(ConfigError, match=rf"train.clip_skip = 90: give 1 to {limit}, this model's text layers"):
        captioned("none", ["a red house", "a house", "a tree"], train__clip_skip=90)


def test_previews_and_class_images_are_generated_by_the_layer_that_is_trained(captioned, monkeypatch):
    asked = []
    generate = Studio.generate

    def noted(studio, prompt, settings=None, **changes):
        asked.append((prompt, changes.get("clip_skip", getattr(settings, "clip_skip", None))))
        return generate(studio, prompt, settings, **changes)

    monkeypatch.setattr(Studio, "generate", noted)
    previews = {"sample__every": 2, "sample__prompts": ["a cat"], "sample__steps": 1}
    prior = {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 1, "prior__steps": 1}
    captions = ["a red house", "a house", "a tree"]
    captioned("follows", captions, train__clip_skip=2, **previews, **prior)
    assert {*asked} == {("a cat", 2), ("a house", 2)}
    asked.clear()
    captioned("own", captions, train__clip_skip=2, sample__clip_skip=1, **previews)
    assert {*asked} == {("a cat", 1)}
