"""CLIPSeg and ONNX segmenters: small models of the true classes, loaded and run as real ones are."""

import builtins
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdlora.errors import ConfigError, FormatError, ModelError
from sdlora.masking import saliency
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import load_segmenter, require_segmenter
from tests.support.hub_server import HubServer
from tests.support.images import noise_image
from tests.support.single_file_checkpoints import fill_hub_cache
from tests.support.tiny_segmenters import write_tiny_clipseg, write_tiny_saliency

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    """A tiny model. Read only."""
    return write_tiny_clipseg(tmp_path_factory.mktemp("clipseg") / "model")


@pytest.fixture
def copy(tmp_path):
    """A tiny model to be changed."""
    return write_tiny_clipseg(tmp_path / "copy")


def load(model, words="a dog", **settings):
    return load_segmenter(MaskSettings(model=str(model), words=words, **settings), CPU)


def levels(image):
    return np.asarray(image, dtype=int)


def test_a_clipseg_gives_what_transformers_own_processor_and_model_do(clipseg):
    from transformers import CLIPSegForImageSegmentation, CLIPTokenizer
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    image = noise_image(70, 90, seed=1)
    values = json.loads((clipseg / "preprocessor_config.json").read_text())
    pixels = ViTImageProcessorPil(**{**values, "size": {"height": 32, "width": 32}})(image, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(clipseg)(["a dog"], return_tensors="pt")
    model = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval()
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits.sigmoid().reshape(32, 32)
    (found,) = load(clipseg).probabilities([image])
    assert found.size == (32, 32) and expected.std() > 0.02
    assert np.abs(levels(found) - 255 * expected.numpy()).max() < 1.5


def test_a_batch_gives_the_masks_of_its_images_alone(clipseg):
    segmenter, images = load(clipseg, "a dog, a cat"), [noise_image(40, 50, seed=seed) for seed in range(3)]
    together = segmenter.probabilities(images)
    for image, found in zip(images, together, strict=True):
        assert np.abs(levels(found) - levels(segmenter.probabilities([image])[0])).max() <= 1


def test_a_place_counts_for_the_likeliest_of_several_things(clipseg):
    image = noise_image(40, 50, seed=2)
    dog, bird, both = (
        levels(load(clipseg, words).probabilities([image])[0]) for words in ("a dog", "a bird", "a dog, a bird")
    )
    assert (dog != bird).any()
    assert np.abs(both - np.maximum(dog, bird)).max() <= 1


def test_without_words_the_class_is_looked_for(clipseg):
    image = noise_image(40, 50, seed=2)
    assert MaskSettings(class_name="old toy").asked == ("an old toy",)
    assert MaskSettings(words=" a  dog, ,a ball ", class_name="toy").asked == ("a dog", "a ball")
    named, asked = (
        load(clipseg, **given).probabilities([image])[0] for given in ({"words": "", "class_name": "dog"}, {})
    )
    assert (levels(named) == levels(asked)).all()
    for model in (clipseg, "some/segmenter"):
        with pytest.raises(ConfigError, match="words is empty, and so is class_name; say what a CLIPSeg"):
            require_segmenter(MaskSettings(model=str(model)))


def test_words_of_any_length_are_cut_to_what_the_model_reads(clipseg):
    assert load(clipseg, "a very very long description of a dog").probabilities([noise_image(40, 40, seed=0)])


@pytest.mark.parametrize(
    ("file", "entry", "message"),
    [("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "never run"),
     ("config.json", {"model_type": "blip"}, "is no segmenter that is read here, but 'blip'; give the"),
     ("preprocessor_config.json", {"size": {"shortest_edge": 32}}, "names no width and height"),
     ("preprocessor_config.json", {"size": 10**6}, "fit no model"),
     ("config.json", {"extract_layers": [0, 1, 9]}, "cannot look at an image")],
)  # fmt: skip
def test_configs_that_ask_for_code_or_make_no_sense_are_refused(copy, file, entry, message):
    values = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**values, **entry}))
    with pytest.raises(ModelError, match=message):
        load(copy).probabilities([noise_image(40, 40, seed=0)])


def test_weights_come_whole_and_from_safetensors_alone(copy):
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    del tensors["decoder.film_mul.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 tensors of a CLIPSeg, such as decoder"):
        load(copy)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError):
        load(copy)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has only \.bin files, which can run code"):
        load(copy)


@pytest.mark.parametrize(
    ("model", "message"),
    [("some/segmenter", "HF_HUB_OFFLINE is set and nothing is cached; go online once, or give a folder"),
     ("model.bin", "can run code when it is opened"), ("no such", "'no such': is no segmenter; give the folder of a"),
     ("gone.onnx", r"'gone\.onnx': is no segmenter")],
)  # fmt: skip
def test_what_cannot_be_had_is_one_sentence(model, message):
    with pytest.raises(ModelError, match=message):
        load(model)


def test_a_folder_without_a_model_and_a_file_of_another_kind_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"has neither a config\.json nor an \.onnx file"):
        load(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelError, match="is no segmenter; give"):
        load(tmp_path / "file.txt")


def test_a_hub_id_that_was_downloaded_loads_offline(clipseg, tmp_path, monkeypatch):
    fill_hub_cache(tmp_path, "some/segmenter", clipseg)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    image = noise_image(40, 50, seed=1)
    here, there = (load(model).probabilities([image])[0] for model in (clipseg, "some/segmenter"))
    assert (levels(here) == levels(there)).all()


def test_of_a_hubs_repository_its_kind_is_fetched_first_and_then_what_that_reads_with_progress(
    clipseg, copy, tmp_path, monkeypatch
):
    for name in ("pytorch_model.bin", "model.onnx", "x.py"):
        (copy / name).write_bytes(b"never asked for")
    hub = HubServer("some/segmenter", copy)
    hub.use(monkeypatch, tmp_path / "hub")
    events, settings = [], MaskSettings(model="some/segmenter", words="a dog")
    try:
        load_segmenter(settings, CPU, events.append)
    finally:
        hub.close()
    assert next(iter(hub.sent)) == "config.json" and {*hub.sent} == {path.name for path in clipseg.iterdir()}
    assert {event.phase for event in events} == {"downloading"} and events[-1].done == events[-1].total


@pytest.mark.parametrize("batch", ["N", 1])
def test_an_onnx_model_finds_its_brightest_places(tmp_path, batch):
    """The tiny model's saliency is the brightness, which min-max normalisation spreads over 0 to 255."""
    pytest.importorskip("onnxruntime")
    image = Image.new("RGB", (64, 32), (40, 40, 40))
    image.paste((90, 90, 90), (0, 0, 32, 32))
    write_tiny_saliency(tmp_path / "u2net.onnx", batch=batch)
    for model in (tmp_path, tmp_path / "u2net.onnx"):
        first, second = load(model, "").probabilities([image, Image.new("RGB", (64, 64), (9, 9, 9))])
        assert first.size == (320, 320)
        assert first.getpixel((10, 160)) > 220 and first.getpixel((310, 160)) < 35  # Lanczos overshoots at the edge.
        assert second.getextrema() == (0, 0)


def test_an_image_is_prepared_as_rembg_does(tmp_path):
    """Levels over the brightest of the image, minus the mean, over the deviation; channels first."""
    pixels = saliency.prepare(Image.new("RGB", (60, 30), (200, 100, 50)), 320)
    assert pixels.shape == (3, 320, 320) and pixels.dtype == np.float32
    expected = [(1 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.25 - 0.406) / 0.225]
    assert np.allclose(pixels[:, 7, 7], expected, atol=1e-5)
    assert np.allclose(saliency.prepare(Image.new("RGB", (60, 30), (200, 100, 50)), 1024)[:, 0, 0], [0.5, 0, -0.25])


def test_an_onnx_model_of_another_kind_is_refused_with_its_reason(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelError, match=r"takes \[1, 3, 64, 64\], and no images .* of 320 x 320 or 1024 x 1024"):
        load(write_tiny_saliency(tmp_path / "other.onnx", side=64), "")
    (tmp_path / "u2net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"u2net\.onnx: its u2net\.onnx cannot be read"):
        load(tmp_path / "u2net.onnx", "")


def test_of_several_onnx_files_one_must_be_named(tmp_path):
    for name in ("isnet.onnx", "u2net.onnx"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=r"has isnet\.onnx and u2net\.onnx; give the file of one segmenter"):
        load(tmp_path, "")


def test_an_onnx_file_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "secret.onnx").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "u2net.onnx").symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(ModelError, match="is a link out of"):
        load(tmp_path / "folder", "")


def test_an_onnx_model_without_its_package_names_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *arguments, **named)

    file = write_tiny_saliency(tmp_path / "u2net.onnx")
    needed = "an ONNX segmenter needs onnxruntime; run pip install onnxruntime, or take a CLIPSeg"
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=needed):
        load(file, "")
