"""Measurements between steps: what they tell, and that a run learns the same with and without them."""

import pytest
import torch
from PIL import Image

from sdlora.config import TrainConfig
from sdlora.events import Measured, Notice, StepDone
from sdlora.signals import loss_ratio, read_pictures, read_updates
from tests.support.tiny_models import write_tiny_model
from tests.support.training import STEPS, assert_equal_files, events_of, train_in_process

OFTEN = {"monitor__every": 2, "monitor__images": 2, "monitor__timesteps": 3}


def by_step(*events):
    return {event.step: (event.times, event.pictures, event.updates) for event in events}


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__dropout": 0.2, "data__flip": True, "data__random_crop": True},
        {"optimizer__name": "schedulefree", "train__text_encoder_learning_rate": 0.0, "data__validation_share": 0.3},
        {"train__gradient_checkpointing": True, "train__offload": True},
    ],
)
def test_a_run_learns_the_same_bits_with_and_without_measurements(configure, tmp_path, changes):
    _, told, measured = train_in_process(configure(**OFTEN, **changes), tmp_path / "measured")
    _, silent, plain = train_in_process(configure(monitor__every=0, **changes), tmp_path / "plain")
    assert [event.step for event in events_of(Measured, told)] == [0, 2, 4, 6]
    assert events_of(Measured, silent) == []
    assert_equal_files(measured.adapter, plain.adapter)
    assert [event.loss for event in events_of(StepDone, told)] == [event.loss for event in events_of(StepDone, silent)]


def test_a_resumed_run_measures_what_an_uninterrupted_one_does(configure, tmp_path):
    config = configure(**OFTEN, data__validation_share=0.2)
    _, events, _ = train_in_process(config, tmp_path / "whole")
    whole = by_step(*events_of(Measured, events))
    assert [*whole] == [0, 2, 4, 6]
    _, first, _ = train_in_process(config, tmp_path / "parts", stop_after=4)
    _, second, _ = train_in_process(config, tmp_path / "parts")
    assert by_step(*events_of(Measured, first), *events_of(Measured, second)) == whole
    assert [event.step for event in events_of(Measured, second)] == [4, 6]


def test_before_the_first_step_all_is_as_the_base_and_then_it_learns(configure, tmp_path):
    config = configure(**OFTEN | {"data__validation_share": 0.3, "train__steps": 10, "monitor__timesteps": 4})
    _, events, _ = train_in_process(config, tmp_path / "run")
    start, *_, end = events_of(Measured, events)
    assert start.times == [125, 375, 625, 875]
    pictures = read_pictures(start.pictures)
    assert [ratio for one in pictures for ratio in one.ratios] == [1.0] * len(pictures) * 4
    assert loss_ratio(pictures, held_out=True) == loss_ratio(pictures) == 1
    assert all((update.norm, update.rank) == (0, 0) for update in read_updates(start.updates))
    last = read_pictures(end.pictures)
    assert loss_ratio(last) < 0.99
    assert {one.name for one in pictures} <= {one.name for one in last}
    assert all(update.norm > 0 and 1 <= update.rank <= 4 for update in read_updates(end.updates))
    assert {"down 0", "mid", "up 1", "text encoder"} <= {update.block for update in read_updates(end.updates)}


def test_an_adapter_that_has_learnt_already_is_measured_before_the_first_step(configure, tmp_path):
    train_in_process(configure(**OFTEN), tmp_path / "first")
    further = configure(**OFTEN | {"adapter__init": str(tmp_path / "first" / "adapter.safetensors")})
    _, first, _ = train_in_process(configure(**OFTEN), tmp_path / "again")
    _, events, _ = train_in_process(further, tmp_path / "second")
    [end, start] = [events_of(Measured, found)[place] for found, place in ((first, -1), (events, 0))]
    ended = {one.name: one.adapted for one in read_pictures(end.pictures)}
    assert {one.name: one.adapted for one in read_pictures(start.pictures)}.items() <= ended.items()
    assert loss_ratio(read_pictures(start.pictures)) != 1


def test_a_run_too_short_for_their_cost_has_none(configure, tmp_path):
    _, events, _ = train_in_process(configure(train__steps=STEPS), tmp_path / "short")
    assert events_of(Measured, events) == []


def test_the_gradient_norm_is_reported_with_each_step(configure, tmp_path):
    _, events, _ = train_in_process(configure(train__max_grad_norm=1e-9), tmp_path / "run")
    assert all(event.gradient_norm > 1e-9 for event in events_of(StepDone, events))


def test_held_out_images_are_named_and_never_trained(configure, tmp_path, monkeypatch):
    from sdlora.data.batches import BatchLoader

    seen = set()
    scheduled = BatchLoader.scheduled

    def watched(self, n):
        found = scheduled(self, n)
        seen.update(one.view.example.path.name for one in found)
        return found

    monkeypatch.setattr(BatchLoader, "scheduled", watched)
    config = configure(**OFTEN, data__validation_share=0.3)
    _, events, _ = train_in_process(config, tmp_path / "run")
    held = {one.name for one in read_pictures(events_of(Measured, events)[0].pictures) if one.held_out}
    assert len(held) == 2 and len(seen) == 4 and not held & seen
    [notice] = [event.message for event in events_of(Notice, events) if "Held out" in event.message]
    assert all(name in notice for name in held)
    assert torch.is_grad_enabled()


def test_concepts_masks_and_varied_captions_are_measured_too(configure, tmp_path):
    for index, name in enumerate(("cat", "dog")):
        for number in range(3):
            image = Image.linear_gradient("L").resize((64, 96) if number else (64, 64)).point(lambda v, n=index: v + n)
            (tmp_path / name).mkdir(exist_ok=True)
            image.rotate(90 * number).save(tmp_path / name / f"{number}.png")
        Image.new("L", (64, 64), 200).save(tmp_path / name / "0.mask.png")
        (tmp_path / name / "1.txt").write_text("{red|blue} sks ohwx\nanother line")
    values = configure(**OFTEN, data__wildcards=True, data__tag_dropout=0.5, train__text_encoder_learning_rate=0)
    concepts = [{"folder": str(tmp_path / name), "trigger": word} for name, word in (("cat", "sks"), ("dog", "ohwx"))]
    config = TrainConfig.parse(values.model_dump(mode="json", exclude_none=True), "test", {"concepts": concepts})
    _, events, _ = train_in_process(config, tmp_path / "run")
    *_, end = events_of(Measured, events)
    names = [one.name for one in read_pictures(end.pictures)]
    assert len(names) == len({*names}) == 2
    assert {name.partition("/")[0] for name in names if "/" in name} <= {"cat", "dog"}


def test_sdxl_is_measured_with_sizes_and_crops(configure, tmp_path):
    base = write_tiny_model(tmp_path / "base", "sdxl")
    config = configure(**OFTEN | {"model__base": str(base), "train__steps": 2, "checkpoint__every": 1})
    _, events, _ = train_in_process(config, tmp_path / "run")
    start, end = events_of(Measured, events)
    assert loss_ratio(read_pictures(start.pictures)) == 1 != loss_ratio(read_pictures(end.pictures))
    assert "text encoder 2" in {update.block for update in read_updates(end.updates)}


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "ia3"])
def test_every_method_has_its_losses_and_those_without_two_factors_no_sizes(configure, tmp_path, method):
    rank = {} if method == "ia3" else {"rank": 2}
    values = configure(monitor__every=2, train__steps=2).model_dump(mode="json", exclude_none=True)
    config = TrainConfig.parse(values | {"adapter": {"method": method, **rank}}, "test")
    _, events, _ = train_in_process(config, tmp_path / "run")
    start, end = events_of(Measured, events)
    assert loss_ratio(read_pictures(start.pictures)) == pytest.approx(1, abs=1e-4)
    assert loss_ratio(read_pictures(end.pictures)) != 1
    assert end.updates == []


def test_a_stop_during_a_measurement_leaves_it_out(configure, tmp_path):
    config = configure(**OFTEN)
    _, events, _ = train_in_process(config, tmp_path / "run", stop_after=2)
    assert [event.step for event in events_of(Measured, events)] == [0]
