"""The training loop on the tiny base: what it tells, what it writes, and that nothing depends on history."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from sdlora.data import cache
from sdlora.diffusion.process import NoiseProcess
from sdlora.errors import ConfigError, FileError, NonFiniteError
from sdlora.events import CheckpointSaved, Notice, Progress, RunFinished, RunStarted, RunStopped, SampleReady, StepDone
from sdlora.families.lazy_modules import LazyModules
from sdlora.families.stable_diffusion import SD1
from sdlora.generation.studio import Studio
from sdlora.training import trainer
from sdlora.training.distributed import Distributed
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import TrainLoop, train
from tests.support.marks import SLOW
from tests.support.tiny_models import write_tiny_model as make_base
from tests.support.training import (
    STEPS,
    assert_equal_files,
    events_of,
    max_file_difference,
    train_in_process,
)


def test_a_run_tells_its_story_and_writes_its_files(configure, tmp_path):
    config = configure(sample__every=3, sample__prompts=["a red house"], sample__steps=2)
    finished, events, output = train_in_process(config, tmp_path / "run")
    assert finished
    started = events_of(RunStarted, events)[0]
    assert (started.step, started.steps, started.images, started.device) == (0, STEPS, 6, "cpu")
    assert started.modules == 16 * 4 + 2 * 4  # 16 cross-attentions of an SD 1.x UNet, 2 text layers; q, k, v, out
    assert 0 < started.share < 0.5
    assert [event.step for event in events_of(StepDone, events)] == list(range(1, STEPS + 1))
    assert [event.step for event in events_of(SampleReady, events)] == [0, 3, 6]
    assert [event.step for event in events_of(CheckpointSaved, events)] == [2, 4, 6]
    assert type(events[-1]) is RunFinished
    assert (output.folder / events[-1].adapter) == output.adapter
    written = events_of(SampleReady, events) + events_of(CheckpointSaved, events)
    assert all((output.folder / event.path).is_file() for event in written)
    assert_equal_files(output.adapter, output.checkpoint(STEPS))
    assert any(key.startswith("lora_te_text_model_") for key in load_file(output.adapter))
    ups = [value for key, value in load_file(output.adapter).items() if "lora_up" in key]
    assert all(up.abs().max() > 0 for up in ups)


@pytest.mark.parametrize(
    ("optimizer", "text_rate"),
    [
        ("adamw", None), ("prodigy", None), ("schedulefree", None), ("adamw", 0.0),
        pytest.param("prodigy", 0.0, marks=SLOW), pytest.param("schedulefree", 0.0, marks=SLOW),
    ],
)  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(configure, tmp_path, optimizer, text_rate):
    config = configure(
        optimizer__name=optimizer, adapter__dropout=0.2, train__gradient_accumulation=2, schedule__name="cosine",
        data__flip=True, data__caption_dropout=0.3, loss__noise_offset=0.05,
        train__text_encoder_learning_rate=text_rate,
    )  # fmt: skip
    _, _, whole = train_in_process(config, tmp_path / "whole")
    finished, events, parts = train_in_process(config, tmp_path / "parts", stop_after=3)
    assert not finished
    assert events_of(RunStopped, events)[0].step == 3
    finished, events, parts = train_in_process(config, tmp_path / "parts")
    assert finished
    assert events_of(RunStarted, events)[0].step == 3
    assert_equal_files(whole.adapter, parts.adapter)


@pytest.fixture
def odd_pictures(tmp_path):
    """Four pictures that stick out of their bucket, and whose captions can be shuffled."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for index in range(4):
        Image.linear_gradient("L").resize((112, 64)).rotate(40 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a red house, on grass, in snow, by the sea, {index}")
    return folder


def test_a_run_stopped_between_previews_resumes_bit_for_bit_with_all_that_varies(configure, tmp_path, odd_pictures):
    config = configure(
        data__folder=str(odd_pictures), data__random_crop=True, data__shuffle_captions=True, adapter__dropout=0.2,
        prior__weight=0.5, prior__class_prompt="a house", prior__count=3, prior__steps=1,
        sample__every=2, sample__prompts=["a red house"], sample__steps=1, sample__seed=4,
    )  # fmt: skip
    _, events, whole = train_in_process(config, tmp_path / "whole")
    assert [event.step for event in events_of(SampleReady, events)] == [0, 2, 4, 6]
    _, early, parts = train_in_process(config, tmp_path / "parts", stop_after=3)
    finished, late, parts = train_in_process(config, tmp_path / "parts")
    assert finished
    assert [event.step for event in events_of(SampleReady, early) + events_of(SampleReady, late)] == [0, 2, 4, 6]
    assert [event.loss for event in events_of(StepDone, events)] == [
        event.loss for event in events_of(StepDone, early + late)
    ]
    assert_equal_files(whole.adapter, parts.adapter)
    assert whole.sample(6, 0).read_bytes() == parts.sample(6, 0).read_bytes()


@pytest.mark.parametrize("rate", [None, 0.0], ids=["live", "cached"])
def test_a_run_whose_captions_are_drawn_resumes_to_the_same_bits_and_learns_what_is_drawn(
    configure, tmp_path, odd_pictures, rate
):
    for index in range(4):
        (odd_pictures / f"{index}.txt").write_text(f"a {{red|blue|green}} house, {index}\na {{cat|dog}}, {index}")
    settings = {"data__folder": str(odd_pictures), "train__text_encoder_learning_rate": rate}
    config = configure(data__wildcards=True, **settings)
    _, _, whole = train_in_process(config, tmp_path / "whole")
    train_in_process(config, tmp_path / "parts", stop_after=3)
    finished, _, parts = train_in_process(config, tmp_path / "parts")
    assert finished
    assert_equal_files(whole.adapter, parts.adapter)
    _, _, letters = train_in_process(configure(**settings), tmp_path / "letters")
    assert max_file_difference(whole.adapter, letters.adapter) > 0


def test_a_run_whose_pictures_changed_is_not_resumed_as_another_one(configure, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    config = configure(data__folder=str(folder))
    train_in_process(config, tmp_path / "run", stop_after=3)
    (folder / "0.txt").write_text("something else")
    with pytest.raises(ConfigError, match="pictures and captions"):
        train_in_process(config, tmp_path / "run")


def test_a_run_whose_class_pictures_changed_is_not_resumed_as_another_one(configure, pictures, tmp_path):
    prior = dict(prior__weight=1.0, prior__class_prompt="a house", prior__folder=pictures, prior__count=3)
    train_in_process(configure(**prior), tmp_path / "run", stop_after=2)
    with pytest.raises(ConfigError, match="begun with class pictures"):
        train_in_process(configure(**{**prior, "prior__count": 2}), tmp_path / "run")


def test_a_preview_that_fails_costs_no_run(configure, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise NonFiniteError("the picture is not finite")

    monkeypatch.setattr(Studio, "generate", fail)
    config = configure(sample__every=2, sample__prompts=["a"])
    finished, events, _ = train_in_process(config, tmp_path / "run")
    assert finished
    assert "no preview at step 0: the picture is not finite" in [event.message for event in events_of(Notice, events)]


def test_a_preview_that_cannot_be_written_costs_no_run(configure, tmp_path, monkeypatch):
    def full(*args):
        raise FileError("the disk is full")

    monkeypatch.setattr("sdlora.training.previews.save_images", full)
    config = configure(sample__every=3, sample__prompts=["a red house"], sample__steps=1)
    finished, events, _ = train_in_process(config, tmp_path / "run")
    assert finished
    assert sum("no preview at step" in event.message for event in events_of(Notice, events)) == 3


def test_a_journal_that_cannot_be_written_at_a_preview_ends_the_run(configure, tmp_path):
    """Only a picture that fails is told and left out."""

    def full(event):
        if isinstance(event, Progress) and event.phase == "preview":
            raise FileError("journal.jsonl: cannot be written")

    config = configure(sample__every=3, sample__prompts=["a red house"], sample__steps=1)
    output = RunPaths(tmp_path / "run")
    for path in (output.samples, output.checkpoints):
        path.mkdir(parents=True)
    with pytest.raises(FileError, match="journal"):
        train(TrainJob(**dict(config), output=output, cache=tmp_path / "cache", on_event=full))


def test_another_seed_gives_another_adapter(configure, tmp_path):
    _, _, one = train_in_process(configure(), tmp_path / "one")
    _, _, other = train_in_process(configure(train__seed=1), tmp_path / "other")
    assert max_file_difference(one.adapter, other.adapter) > 1e-3


def test_the_text_encoder_stops_where_told(configure, tmp_path):
    _, _, output = train_in_process(configure(train__text_encoder_stop=2), tmp_path / "run")
    early, late = load_file(output.checkpoint(2)), load_file(output.checkpoint(6))
    moved = {key for key in early if not torch.equal(early[key], late[key])}
    assert moved
    assert all(key.startswith("lora_unet_") for key in moved)


def test_a_text_rate_of_zero_leaves_the_text_encoder_out(configure, tmp_path):
    _, events, output = train_in_process(configure(train__text_encoder_learning_rate=0.0), tmp_path / "run")
    assert events_of(RunStarted, events)[0].modules == 64
    assert not any(key.startswith("lora_te_") for key in load_file(output.adapter))


def test_class_pictures_are_made_once_and_weigh_in(configure, tmp_path):
    prior = dict(prior__weight=1.0, prior__class_prompt="a house", prior__count=3, prior__steps=2)
    _, events, with_prior = train_in_process(configure(**prior), tmp_path / "with")
    made = [event for event in events if getattr(event, "phase", "") == "making class pictures"]
    assert made[-1].done == 3
    _, events, _ = train_in_process(configure(**prior), tmp_path / "again")
    assert [event for event in events if getattr(event, "phase", "") == "making class pictures"] == []
    _, _, without = train_in_process(configure(), tmp_path / "without")
    assert max_file_difference(with_prior.adapter, without.adapter) > 1e-4


def test_class_examples_held_to_the_base_draw_nothing_while_the_adapter_does_nothing(configure, tmp_path):
    """A fresh adapter predicts what the base does: then its class part has no error, and all that moves is the rest.

    AdamW's first step is the rate, 1e-2, whatever the gradient's size; of gradients near its epsilon, rounding shows.
    """
    prior = dict(prior__weight=1.0, prior__class_prompt="a house", prior__count=3, prior__steps=1)
    once = dict(train__steps=1)
    _, alone, without = train_in_process(configure(**once), tmp_path / "without")
    _, events, held = train_in_process(configure(**once, **prior, prior__target="base"), tmp_path / "held")
    assert events_of(StepDone, events)[0].loss == pytest.approx(events_of(StepDone, alone)[0].loss, rel=1e-5)
    assert max_file_difference(held.adapter, without.adapter) < 1e-4
    _, _, later = train_in_process(configure(**prior, prior__target="base"), tmp_path / "later")
    _, _, free = train_in_process(configure(), tmp_path / "free")
    assert max_file_difference(later.adapter, free.adapter) > 1e-2


def test_the_base_s_own_prediction_is_kept_for_the_empty_prompt_and_without_the_trigger(configure, tmp_path):
    """A fresh adapter predicts what the base does, so that nearly all of the first loss is gone."""
    words = dict(data__trigger="ohwx", train__steps=4, train__batch_size=4)
    _, _, free = train_in_process(configure(**words), tmp_path / "free")
    settings = dict(data__preserve_empty=0.3, data__preserve_untriggered=0.6)
    _, events, kept = train_in_process(configure(**words, **settings), tmp_path / "kept")
    losses = [event.loss for event in events_of(StepDone, events)]
    _, again, _ = train_in_process(configure(**words, **settings), tmp_path / "again")
    assert losses == [event.loss for event in events_of(StepDone, again)]
    assert losses[0] < events_of(StepDone, train_in_process(configure(**words), tmp_path / "other")[1])[0].loss
    assert max_file_difference(kept.adapter, free.adapter) > 1e-3


def test_previews_and_checkpoints_change_nothing_in_a_schedule_free_run(configure, tmp_path):
    settings = dict(optimizer__name="schedulefree", sample__prompts=["a red house"], sample__steps=1)
    _, _, looked_at = train_in_process(
        configure(sample__every=1, checkpoint__every=1, **settings), tmp_path / "looked at"
    )
    _, _, left_alone = train_in_process(
        configure(sample__every=0, checkpoint__every=0, **settings), tmp_path / "left alone"
    )
    assert_equal_files(looked_at.adapter, left_alone.adapter)


def test_prior_preservation_without_a_class_generates_what_the_captions_say(configure, tmp_path):
    prior = dict(prior__weight=1.0, prior__count=2, prior__steps=1)
    finished, _, _ = train_in_process(configure(**prior, train__steps=1), tmp_path / "run")
    records = [path.read_text() for path in (tmp_path / "cache" / "class-images").rglob("*.json")]
    assert finished and records and not any("sks" in record for record in records)


def test_training_goes_on_from_an_adapter_file(configure, tmp_path):
    _, _, first = train_in_process(configure(), tmp_path / "first")
    too_small_to_move = 1e-30
    config = configure(adapter__init=str(first.adapter), train__learning_rate=too_small_to_move)
    _, _, second = train_in_process(config, tmp_path / "second")
    assert_equal_files(first.adapter, second.adapter)


def test_a_file_with_text_layers_needs_a_rate_for_them(configure, tmp_path):
    _, _, first = train_in_process(configure(adapter__text_encoder=True), tmp_path / "first")
    config = configure(
        adapter__text_encoder=True, adapter__init=str(first.adapter), train__text_encoder_learning_rate=0.0
    )
    with pytest.raises(ConfigError, match=r"layers of the text encoder, and train\.text_encoder_learning_rate is 0"):
        train_in_process(config, tmp_path / "second")


def test_steps_are_counted_from_epochs_and_suggested_otherwise(configure, tmp_path):
    _, events, _ = train_in_process(configure(train__steps=None, train__epochs=2), tmp_path / "epochs")
    assert events_of(RunStarted, events)[0].steps == 6  # 2 epochs of 6 pictures, 2 a step (2 + 4 of each shape)
    _, events, _ = train_in_process(configure(train__steps=None), tmp_path / "suggested", stop_after=1)
    assert any("suggested" in event.message for event in events_of(Notice, events))


def test_gradients_that_stay_infinite_end_the_run_and_save_nothing_bad(configure, tmp_path, monkeypatch):
    real = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *a, **k: real(*a, **k) * float("nan"))
    with pytest.raises(NonFiniteError, match=r"5 steps in a row.*train\.learning_rate"):
        train_in_process(configure(train__steps=20, checkpoint__every=1), tmp_path / "run")
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert saved
    assert all(value.isfinite().all() for path in saved for value in load_file(path).values())


@pytest.fixture
def norms(monkeypatch):
    """The gradients' norm before and after each clipping."""
    seen, clip = [], Distributed.clip

    def watch(distributed, optimizer, parameters, most):
        before = clip(distributed, optimizer, parameters, most)
        after = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        seen.append((before.item(), after.item()))
        return before

    monkeypatch.setattr(Distributed, "clip", watch)
    return seen


class Reads(TorchDispatchMode):
    """Counts how often a number is taken from a tensor: on a graphics card, each waits for all that was begun."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_no_step_takes_numbers_from_the_device_one_by_one(configure, tmp_path, monkeypatch, family):
    """Loss and norm come together, by ``tolist``, which is no operation on a CPU; nothing else is waited for."""
    with Reads() as watched:
        assert torch.ones(1).item() == 1 and bool(torch.ones(1))
    assert watched.count == 2
    counts, step = [], TrainLoop.step

    def count(loop, number):
        with Reads() as found:
            loss = step(loop, number)
        counts.append(found.count)
        return loss

    monkeypatch.setattr(TrainLoop, "step", count)
    base = str(make_base(tmp_path / "base", family))
    prior = {"prior__weight": 1.0, "prior__count": 2, "prior__steps": 1, "data__class_name": "cat"}
    train_in_process(
        configure(**prior, train__gradient_accumulation=2, train__steps=3, model__base=base), tmp_path / "run"
    )
    assert counts == [0, 0, 0]


def test_gradients_are_cut_to_the_norm_that_is_set(configure, tmp_path, norms):
    train_in_process(configure(train__steps=1, train__max_grad_norm=0.0), tmp_path / "free")
    train_in_process(configure(train__steps=1, train__max_grad_norm=1e-3), tmp_path / "cut")
    (before, after), (before_cut, after_cut) = norms
    assert before == before_cut > 2e-3
    assert after == pytest.approx(before, rel=1e-4)
    assert after_cut == pytest.approx(1e-3, rel=1e-3)


def test_batches_that_are_added_up_equal_one_of_their_size(configure, tmp_path, norms, monkeypatch):
    """Four pictures of one shape, all with the same noise: then nothing but the order of sums depends on the split."""
    real, folder = NoiseProcess.sample, tmp_path / "pictures"
    monkeypatch.setattr(
        NoiseProcess,
        "sample",
        lambda self, shape, seed, number, positions, *rest: real(self, shape, 0, 0, [0] * len(positions), *rest),
    )
    folder.mkdir()
    for index in range(4):
        Image.linear_gradient("L").resize((64, 64)).rotate(90 * index).convert("RGB").save(folder / f"{index}.png")
    settings = {"data__folder": str(folder), "train__steps": 2, "train__learning_rate": 1e-3}
    one = configure(**settings, train__batch_size=4)
    two = configure(**settings, train__batch_size=2, train__gradient_accumulation=2)
    event_lists = [train_in_process(config, tmp_path / name)[1] for config, name in ((one, "one"), (two, "two"))]
    at_once, added_up = ([event.loss for event in events_of(StepDone, events)] for events in event_lists)
    assert added_up == pytest.approx(at_once, rel=1e-4)
    befores = [before for before, _ in norms]
    assert befores[2:] == pytest.approx(befores[:2], rel=1e-3)


def test_one_bad_step_is_left_out_and_told(configure, tmp_path, monkeypatch):
    real = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *a: real(*a) * (float("inf") if a[7] == 2 else 1.0))
    finished, events, output = train_in_process(configure(), tmp_path / "run")
    assert finished
    assert [event.message for event in events_of(Notice, events) if "left out" in event.message] == [
        "step 3 was left out: its loss or gradient is not finite"
    ]
    assert all(value.isfinite().all() for value in load_file(output.adapter).values())


def test_half_precision_on_a_cpu_is_refused(configure, tmp_path):
    with pytest.raises(ConfigError, match="fp16 does not work on a CPU"):
        train_in_process(configure(train__precision="fp16"), tmp_path / "run")


def test_a_bf16_base_trains_float32_adapters(configure, tmp_path):
    finished, events, output = train_in_process(configure(train__precision="bf16"), tmp_path / "run")
    assert finished
    assert events_of(RunStarted, events)[0].precision == "bf16"
    assert all(value.dtype == torch.float32 for value in load_file(output.adapter).values())


def test_gradient_checkpointing_changes_memory_not_results(configure, tmp_path):
    _, _, plain = train_in_process(configure(adapter__dropout=0.1), tmp_path / "plain")
    _, _, saving = train_in_process(
        configure(adapter__dropout=0.1, train__gradient_checkpointing=True), tmp_path / "saving"
    )
    assert max_file_difference(plain.adapter, saving.adapter) < 1e-6


def test_no_step_decodes_a_file_or_runs_the_vae(configure, tmp_path, monkeypatch):
    """Once the latents are cached, a whole run works with the pictures' decoder and the VAE taken away."""
    train_in_process(configure(), tmp_path / "first")

    def never(*args, **kwargs):
        raise AssertionError("a step touched the pictures or the VAE")

    monkeypatch.setattr(cache, "open_image", never)
    monkeypatch.setattr(SD1, "encode_images", never)
    finished, _, _ = train_in_process(configure(), tmp_path / "second")
    assert finished


@pytest.fixture
def opened(monkeypatch):
    """The components that open from now on, in their order."""
    real, names = LazyModules._open, []
    monkeypatch.setattr(LazyModules, "_open", lambda modules, name: names.append(name) or real(modules, name))
    return names


def test_a_run_whose_caches_are_filled_opens_what_trains_alone(configure, tmp_path, opened):
    frozen = {"adapter__text_encoder": False}
    _, _, cold = train_in_process(configure(**frozen), tmp_path / "cold")
    assert opened == ["vae", "unet", "text_encoder"]
    opened.clear()
    _, _, warm = train_in_process(configure(**frozen), tmp_path / "warm")
    assert opened == ["unet"]
    assert max_file_difference(cold.adapter, warm.adapter) == 0
    opened.clear()
    train_in_process(configure(train__text_encoder_learning_rate=0.0), tmp_path / "rate of 0")
    assert opened == ["unet"]
    opened.clear()
    train_in_process(configure(), tmp_path / "trains both")
    assert opened == ["unet", "text_encoder"]


def test_previews_and_class_images_open_what_they_need(configure, tmp_path, opened):
    train_in_process(configure(adapter__text_encoder=False), tmp_path / "fills the caches")
    opened.clear()
    drawn = {"sample__every": 3, "sample__prompts": ["a red house"], "sample__steps": 1}
    _, events, _ = train_in_process(configure(adapter__text_encoder=False, **drawn), tmp_path / "previews")
    assert opened == ["unet", "text_encoder", "vae"]
    assert len(events_of(SampleReady, events)) == 3
    opened.clear()
    prior = {"prior__weight": 1.0, "prior__count": 1, "prior__class_prompt": "a house", "prior__steps": 1}
    train_in_process(configure(adapter__text_encoder=False, **prior), tmp_path / "class images")
    assert sorted(opened) == ["text_encoder", "unet", "vae"]


def test_no_step_encodes_text_where_no_text_encoder_trains(configure, tmp_path, monkeypatch):
    """From the first step on, a whole run works with the text encoder taken away."""
    real = trainer.training_step

    def never(*args):
        raise AssertionError("a step encoded text")

    def step(*args):
        monkeypatch.setattr(SD1, "encode_text", never)
        return real(*args)

    monkeypatch.setattr(trainer, "training_step", step)
    frozen = configure(train__text_encoder_learning_rate=0.0, data__shuffle_captions=True, data__caption_dropout=0.3)
    finished, _, _ = train_in_process(frozen, tmp_path / "run")
    assert finished


def test_a_run_whose_checkpoints_do_not_fit_on_the_disk_ends_before_its_first_step(configure, tmp_path, monkeypatch):
    """Six steps saved every other: three states of three times the adapter in float32, and five adapter files."""
    _, events, _ = train_in_process(configure(), tmp_path / "whole")
    needed = (3 * 3 + 5) * 4 * events_of(RunStarted, events)[0].parameters

    def begin(*args):
        raise AssertionError("the first step")

    monkeypatch.setattr(trainer, "training_step", begin)
    for free, error, message in ((needed - 1, FileError, "on this disk"), (needed, AssertionError, "the first step")):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with pytest.raises(error, match=message):
            train_in_process(configure(), tmp_path / str(free))


def test_tensorboard_writes_its_log(configure, tmp_path):
    _, _, output = train_in_process(configure(train__tensorboard=True), tmp_path / "run")
    assert list(output.tensorboard.rglob("events.out.tfevents*"))


def test_the_rates_of_both_parts_are_logged(configure, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(trainer.Distributed, "log", lambda self, values, step: logged.append(values))
    rates = dict(train__learning_rate=1e-3, train__text_encoder_learning_rate=2e-4, schedule__name="constant")
    _, events, _ = train_in_process(configure(adapter__text_encoder=True, **rates), tmp_path / "run")
    assert {(values["learning_rate"], values["text_encoder_learning_rate"]) for values in logged} == {(1e-3, 2e-4)}
    assert {event.learning_rate for event in events_of(StepDone, events)} == {1e-3}


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_a_run_that_goes_on_longer_equals_one_of_that_length_from_the_start(configure, tmp_path, optimizer):
    settings = dict(adapter__dropout=0.2, data__flip=True, optimizer__name=optimizer)
    train_in_process(configure(**settings), tmp_path / "longer")
    finished, events, longer = train_in_process(configure(train__steps=10, **settings), tmp_path / "longer")
    _, _, whole = train_in_process(configure(train__steps=10, **settings), tmp_path / "whole")
    assert finished
    assert events_of(RunStarted, events)[0].step == STEPS
    assert "this run goes on from step 6 to 10, where it was to end at 6" in [
        e.message for e in events_of(Notice, events)
    ]
    assert_equal_files(whole.adapter, longer.adapter)


def test_the_rate_of_a_longer_run_is_that_of_its_new_length(configure, tmp_path):
    config = configure(schedule__name="cosine")
    train_in_process(config, tmp_path / "run")
    _, events, _ = train_in_process(configure(schedule__name="cosine", train__steps=10), tmp_path / "run")
    rates = [event.learning_rate for event in events_of(StepDone, events)]
    assert rates == [config.train.learning_rate * config.schedule.factor(step, 10) for step in range(6, 10)]
    assert any(event.message.endswith("its rate is that of a cosine run of 10") for event in events_of(Notice, events))


def test_a_run_cannot_end_before_where_it_is(configure, tmp_path):
    train_in_process(configure(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.steps = 4: this run has done 6 steps already"):
        train_in_process(configure(train__steps=4), tmp_path / "run")
