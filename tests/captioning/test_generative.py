"""BLIP and Florence-2: small random models of the true classes, loaded and run as real ones are."""

import json

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdlora.captioning.settings import CaptionSettings
from sdlora.captioning.sources import FLORENCE, load_captioner
from sdlora.errors import FormatError, ModelError
from sdlora.families import hub_download
from tests.support.hub_server import HubServer
from tests.support.page_server import free_port
from tests.support.single_file_checkpoints import fill_hub_cache
from tests.support.tiny_captioners import write_tiny_blip, write_tiny_florence2

CPU = torch.device("cpu")
WRITERS = {"blip": write_tiny_blip, "florence2": write_tiny_florence2}


@pytest.fixture(scope="module", params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A tiny model. Read only."""
    return WRITERS[kind](tmp_path_factory.mktemp(kind) / "model")


@pytest.fixture
def copy(kind, tmp_path):
    """A tiny model to be changed."""
    return WRITERS[kind](tmp_path / "copy")


def load(folder, **settings):
    return load_captioner(CaptionSettings(model=str(folder), **settings), CPU)


def noise(seed, size=(90, 70)):
    levels = torch.randint(0, 256, (*size[::-1], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def test_a_batch_gives_the_captions_of_its_images_alone(folder):
    captioner, images = load(folder, max_words=8), [noise(seed) for seed in range(3)]
    together = captioner.captions(images)
    assert len(together) == 3 and all(isinstance(text, str) for text in together)
    assert together == [captioner.captions([image])[0] for image in images]


def prepared_by_transformers(kind, folder, image, tokenizer):
    """Inputs as transformers' own processors make them."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.florence2 import Florence2Processor

    values = json.loads((folder / "preprocessor_config.json").read_text())
    if kind == "blip":
        return BlipImageProcessorPil(**values)(image, return_tensors="pt")
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    processor = Florence2Processor(CLIPImageProcessorPil(do_center_crop=False, **values), tokenizer)
    return processor(text="<DETAILED_CAPTION>", images=image, return_tensors="pt")


def test_a_model_gets_what_transformers_own_processor_would_give_it(kind, folder):
    captioner, image = load(folder), noise(1)
    expected = prepared_by_transformers(kind, folder, image, captioner.tokenizer)
    assert torch.allclose(captioner.preparation.pixels(image)[None], expected["pixel_values"], atol=1e-5)
    if kind == "florence2":
        assert captioner._input_ids() == expected["input_ids"][0].tolist()


def test_the_length_is_bounded_whatever_the_model_says(copy):
    path = copy / "generation_config.json"
    hostile = {"max_new_tokens": 10**9, "num_beams": 10**6, "num_return_sequences": 10**6}
    path.write_text(json.dumps({**json.loads(path.read_text()), **hostile}))
    (caption,) = load(copy, max_words=3).captions([noise(0)])
    assert len(caption.split()) <= 3


def test_words_of_the_blacklist_are_not_in_a_sentence(tmp_path):
    folder = write_tiny_blip(tmp_path / "model")
    said = load(folder).captions([noise(0)])[0].split()
    refused = load(folder, blacklist=(said[0],)).captions([noise(0)])[0].split()
    assert refused == [word for word in said if word != said[0]]


@pytest.mark.parametrize(
    ("file", "entry", "message"),
    [("config.json", {"auto_map": {"AutoModel": "x.Y"}}, "never run"),
     ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x.Y"}}, "never run"),
     ("config.json", {"quantization_config": {"quant_method": "x"}}, "never run"),
     ("config.json", {"model_type": "llava"}, "is no captioner that is read here, but 'llava'; give the folder of a"),
     ("config.json", {"model_type": None}, "is no captioner that is read here"),
     ("preprocessor_config.json", {"size": {"shortest_edge": 32}}, "names no width and height"),
     ("preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}, "fit no model"),
     ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "fit no model")],
)  # fmt: skip
def test_configs_that_ask_for_code_or_make_no_sense_are_refused(copy, file, entry, message):
    values = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**values, **entry}))
    with pytest.raises(ModelError, match=message):
        load(copy)


def test_a_florence_that_brings_code_is_named_one_that_does_not(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "florence2", "auto_map": {"AutoModel": "m.M"}}))
    with pytest.raises(ModelError, match=f"brings code, which is never run; take {FLORENCE}"):
        load(tmp_path)


def test_weights_come_from_safetensors_alone(copy):
    weights = copy / "model.safetensors"
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has only \.bin files, which can run code"):
        load(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no \.safetensors weights"):
        load(copy)


def test_weights_that_are_cut_or_incomplete_are_refused(copy, kind):
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("layer_norm1.weight") or "self_attn.q_proj.weight" in name)
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 tensors of a"):
        load(copy)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError):
        load(copy)


def test_a_link_out_of_the_folder_is_refused(copy, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (copy / "added_tokens.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="is a link out of"):
        load(copy)


@pytest.mark.parametrize(
    ("model", "message"),
    [("some/captioner", "HF_HUB_OFFLINE is set and nothing is cached; go online once, or give a folder"),
     ("model.bin", "can run code when it is opened"), ("no such", "'no such': is no captioner")],
)  # fmt: skip
def test_what_cannot_be_had_is_one_sentence(model, message):
    with pytest.raises(ModelError, match=message):
        load(model)


def test_a_hub_id_that_was_downloaded_loads_offline(folder, tmp_path, monkeypatch):
    fill_hub_cache(tmp_path, "some/captioner", folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load("some/captioner").captions([noise(0)]) == load(folder).captions([noise(0)])


@pytest.fixture
def hub(copy, tmp_path, monkeypatch):
    """A hub that serves the tiny model among files that are not needed, and an empty cache."""
    for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx", "x.py"):
        (copy / name).write_bytes(b"never asked for")
    server = HubServer("some/captioner", copy)
    server.use(monkeypatch, tmp_path / "hub")
    yield server
    server.close()


def test_of_a_hubs_repository_its_kind_is_fetched_first_and_then_what_that_reads_with_progress(
    hub, folder, monkeypatch
):
    events = []
    images, settings = [noise(0)], CaptionSettings(model="some/captioner")
    written = load_captioner(settings, CPU, events.append).captions(images)
    assert written == load(folder).captions(images)
    assert next(iter(hub.sent)) == "config.json" and {*hub.sent} == {path.name for path in folder.iterdir()}
    assert {event.phase for event in events} == {"downloading"} and events[-1].unit == "bytes"
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert events[-1].done == events[-1].total >= weights
    sent, events[:] = dict(hub.sent), []
    assert load_captioner(settings, CPU, events.append).captions(images) == written
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_captioner(settings, CPU, events.append).captions(images) == written
    assert hub.sent == sent and events == []


def test_a_captioner_that_is_cached_needs_no_hub_and_no_right_to_write_its_cache(hub, monkeypatch):
    written = load("some/captioner").captions([noise(0)])
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(hub_download, "hold_lock", None)
    assert load("some/captioner").captions([noise(0)]) == written


def test_a_folder_without_a_model_and_a_file_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"has neither a config\.json nor a selected_tags\.csv"):
        load(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelError, match="is no captioner; give pocket, a folder, or a hub id"):
        load(tmp_path / "file.txt")
