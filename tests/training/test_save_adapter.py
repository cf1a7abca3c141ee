"""The header and the side file of a trained adapter say what the run really did."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from tests.support.training import train_in_process


@pytest.fixture
def two_folders(tmp_path):
    """Two pictures seen three times an epoch, and two class pictures."""
    pictures, classes = tmp_path / "data" / "3_house", tmp_path / "classes"
    for number, folder in enumerate((pictures, classes)):
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (64, 64), (90 * number, ord(name), 0)).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"a red house, {name}")
    return {"data__folder": str(pictures.parent), "prior__folder": str(classes), "prior__count": 2}


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_header_of_a_trained_file_tells_the_truth(configure, tmp_path, two_folders, tiny_base):
    begun = time.time()
    config = configure(
        **two_folders, prior__weight=0.5, prior__class_prompt="a house", train__steps=4, train__learning_rate=2e-3,
        train__text_encoder_learning_rate=5e-4, train__seed=7, train__gradient_accumulation=2, schedule__name="cosine",
        loss__min_snr_gamma=5.0, adapter__rank=3, adapter__alpha=1.5,
    )  # fmt: skip
    _, _, output = train_in_process(config, tmp_path / "my-house")
    found = header(output.adapter)
    expected = {
        "ss_output_name": "my-house",
        "ss_sd_model_name": tiny_base.name,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_steps": "4",
        "ss_num_epochs": "3",  # 8 batches of 2, of 3 x 2 pictures
        "ss_learning_rate": "0.002",
        "ss_unet_lr": "0.002",
        "ss_text_encoder_lr": "0.0005",
        "ss_lr_scheduler": "cosine",
        "ss_optimizer": "adamw",
        "ss_num_train_images": "6",
        "ss_num_reg_images": "2",
        "ss_prior_loss_weight": "0.5",
        "ss_total_batch_size": "2",
        "ss_gradient_accumulation_steps": "2",
        "ss_min_snr_gamma": "5.0",
        "ss_seed": "7",
        "ss_resolution": "(64, 64)",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "1.5",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "my-house",
        "modelspec.resolution": "64x64",
        "modelspec.trigger_phrase": "sks",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert json.loads(found["ss_dataset_dirs"]) == {"3_house": {"n_repeats": 3, "img_count": 2}}
    assert json.loads(found["ss_bucket_info"])["buckets"] == {"0": {"resolution": [64, 64], "count": 6}}
    assert json.loads(found["ss_tag_frequency"]) == {"3_house": {"sks": 2, "a red house": 2, "a": 1, "b": 1}}
    assert begun <= float(found["ss_training_started_at"]) <= float(found["ss_training_finished_at"]) <= time.time()
    content = Path(output.adapter).read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert found["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
    assert header(output.checkpoint(2))["ss_steps"] == "2"
    assert json.loads(output.adapter.with_suffix(".json").read_text()) == {
        "description": "",
        "sd version": "SD1",
        "activation text": "sks",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": "",
    }


def test_what_a_run_has_not_is_not_in_its_header(configure, tmp_path):
    config = configure(data__trigger="", train__steps=1, train__text_encoder_learning_rate=0.0)
    _, _, output = train_in_process(config, tmp_path / "run")
    found = header(output.adapter)
    assert not {"ss_text_encoder_lr", "modelspec.trigger_phrase", "ss_min_snr_gamma", "ss_clip_skip"} & found.keys()
    assert (found["ss_num_train_images"], found["ss_num_reg_images"]) == ("6", "0")
    assert json.loads(output.adapter.with_suffix(".json").read_text())["activation text"] == ""
