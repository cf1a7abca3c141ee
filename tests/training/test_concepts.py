"""Two concepts in one run, end to end on the tiny base: captions, class images, weights, and resuming."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.events import Notice, StepDone
from sdlora.formats.header_summary import read_header_summary
from sdlora.storage.run_folder import Run
from tests.support.run_outcome import model_hash
from tests.support.training import assert_equal_files, events_of, train_in_process

KILLED = -9


def fill(folder: Path, count: int, red: int) -> Path:
    folder.mkdir()
    for index in range(count):
        size = (64, 64) if index % 2 else (96, 48)
        Image.linear_gradient("L").resize(size).point(lambda v, i=index: v // (i + 2) + red).save(
            folder / f"{index}.png"
        )
    return folder


@pytest.fixture
def two(configure: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config for a short run of a cat in two pictures and a dog in five."""
    cat, dog = fill(tmp_path / "cat", 2, 40), fill(tmp_path / "dog", 5, 120)
    (dog / "0.txt").write_text("a ohwx dog, asleep, at home")

    def make(own: dict[str, Any] | None = None, **overrides: Any) -> TrainConfig:
        changes = {
            "prior__weight": 0.5, "prior__count": 2, "prior__steps": 1, "data__flip": True,
            "data__caption_dropout": 0.1, **overrides,
        }  # fmt: skip
        concepts = [
            {"folder": str(cat), "trigger": "sks", "class_name": "cat", "caption_dropout": 0},
            {"folder": str(dog), "trigger": "ohwx", "class_name": "dog", "shuffle_captions": True, **(own or {})},
        ]
        values = configure(**changes).model_dump(mode="json", exclude_none=True)
        return TrainConfig.parse(values, "test", {"concepts": concepts})

    return make


def test_a_run_tells_of_its_concepts_and_its_file_has_both_words(two, tmp_path):
    finished, events, output = train_in_process(two(train__steps=None, train__epochs=1), tmp_path / "run")
    assert finished
    told = [event.message for event in events_of(Notice, events)]
    assert "An epoch has 2 concepts. sks: 2 pictures, 6 times seen (55%); ohwx: 5 pictures, 5 times seen (45%)." in told
    assert any(message.startswith("concept 1 (sks): ") for message in told)
    assert read_header_summary(output.adapter).triggers == ("sks", "ohwx")
    assert json.loads(output.adapter.with_suffix(".json").read_text())["activation text"] == "sks, ohwx"
    with safe_open(output.adapter, "pt") as file:
        metadata = file.metadata()
    folders = json.loads(metadata["ss_dataset_dirs"])
    assert folders == {"3_sks cat": {"n_repeats": 3, "img_count": 2}, "1_ohwx dog": {"n_repeats": 1, "img_count": 5}}
    assert metadata["ss_num_reg_images"] == "4" and metadata["ss_num_train_images"] == "11"
    assert {path.name for path in (tmp_path / "cache" / "class-images").iterdir()} and len(
        [*(tmp_path / "cache" / "class-images").rglob("*.png")]
    ) == 4
    steps = -(-11 // 2) + 1  # Two buckets: each fills its last batch up.
    assert len(events_of(StepDone, events)) in (steps - 1, steps)


@pytest.mark.parametrize("prior", [{"prior__weight": 0.5}, {"prior__weight": 0.0}], ids=["class images", "none"])
def test_a_resumed_run_of_two_equals_an_uninterrupted_one_bit_for_bit(two, tmp_path, prior):
    config = two({"weight": 2.0}, **prior)
    _, _, whole = train_in_process(config, tmp_path / "whole")
    finished, _, parts = train_in_process(config, tmp_path / "parts", stop_after=3)
    assert not finished
    finished, events, parts = train_in_process(config, tmp_path / "parts")
    assert finished and events_of(StepDone, events)[0].step == 4
    assert_equal_files(whole.adapter, parts.adapter)


def test_a_run_of_two_killed_wherever_it_is_resumes_to_the_same_bits(two, fork_server, tmp_path):
    config = two()
    _, _, whole = train_in_process(config, tmp_path / "whole" / "run")
    run = Run.create(tmp_path / "data" / "runs", "run", config)
    command = ("sdlora.jobs.training_worker", [str(run.folder)], run.log)
    for fault in ("class.kept:3", "cache.kept:9", "state.tensors", "checkpoint.saved"):
        assert fork_server.start(*command, failpoint=fault).wait() == KILLED, run.log.read_text()[-3000:]
        assert run.state == "interrupted"
    assert fork_server.start(*command).wait() == 0, run.log.read_text()[-3000:]
    assert model_hash(run.adapter) == model_hash(whole.adapter)


def test_a_list_of_one_trains_the_same_bits_as_the_sections(configure, pictures, tmp_path):
    config = configure(data__class_name="house", prior__weight=0.5, prior__count=2, prior__steps=1)
    values = config.model_dump(mode="json", exclude_none=True)
    own = {"folder": str(pictures), "trigger": "sks", "class_name": "house"}
    listed = TrainConfig.parse(values, "test", {"concepts": [own]})
    _, _, one = train_in_process(config, tmp_path / "one")
    _, _, other = train_in_process(listed, tmp_path / "other")
    assert_equal_files(one.adapter, other.adapter)


def test_weights_of_a_concept_change_what_is_learnt(two, tmp_path):
    hashes = set()
    for number, own in enumerate(({}, {"weight": 3.0}, {"prior_weight": 0.0}, {"masks": False})):
        _, _, output = train_in_process(two(own), tmp_path / str(number))
        hashes.add(model_hash(output.adapter))
    assert len(hashes) == 3  # No picture has a mask.


def test_a_resume_refuses_pictures_that_changed_their_concept(two, tmp_path):
    config = two(prior__weight=0.0)
    train_in_process(config, tmp_path / "run", stop_after=2)
    cat, dog = (Path(concept.folder) for concept in config.concepts)
    shutil.move(dog / "4.png", cat / "9.png")
    with pytest.raises(ConfigError, match="this run was begun with"):
        train_in_process(config, tmp_path / "run")


def test_a_changed_setting_of_a_concept_is_named_on_a_resume(two, tmp_path):
    train_in_process(two(), tmp_path / "run", stop_after=2)
    _, events, _ = train_in_process(two({"weight": 2.0}), tmp_path / "run")
    told = [event.message for event in events_of(Notice, events)]
    assert any("concept 2: weight = 2.0" in message for message in told)
