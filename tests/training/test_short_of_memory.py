"""Training with less memory: what it changes and what it must not."""

import pytest
import torch

from sdlora.adapters import attach
from sdlora.data.batches import Batch
from sdlora.events import Notice, RunStarted, RunStopped, SampleReady
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats import read_adapter
from sdlora.training.component_offload import ComponentOffload
from sdlora.training.settings import Loss
from sdlora.training.step import training_step
from tests.support.marks import NEEDS_LIBRARY, SLOW
from tests.support.training import assert_equal_files, events_of, max_file_difference, train_in_process


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=SLOW), pytest.param("nf4", marks=NEEDS_LIBRARY)])
def test_a_run_over_a_rounded_base_draws_resumes_to_the_same_bits_and_is_written(configure, tmp_path, kind):
    config = configure(model__quantize=kind, sample__every=3, sample__prompts=["a red house"], sample__steps=2)
    _, events, whole = train_in_process(config, tmp_path / "whole")
    assert [event.step for event in events_of(SampleReady, events)] == [0, 3, 6]
    finished, events, parts = train_in_process(config, tmp_path / "parts", stop_after=3)
    assert not finished and events_of(RunStopped, events)[0].step == 3
    finished, events, parts = train_in_process(config, tmp_path / "parts")
    assert finished and events_of(RunStarted, events)[0].step == 3
    assert_equal_files(whole.adapter, parts.adapter)
    _, _, wide = train_in_process(configure(), tmp_path / "wide")
    assert max_file_difference(whole.adapter, wide.adapter) > 0
    family = load_family(Model(base=config.model.base))  # A base in full takes what was learnt over the rounded one.
    attach.load_state(family.models, read_adapter(whole.adapter), "learnt")


def test_class_pictures_of_a_rounded_base_are_not_those_of_the_whole_one(configure, tmp_path):
    prior = {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 1, "prior__steps": 1}
    for number, bits in enumerate(({}, {"model__quantize": "int8"}, {})):
        train_in_process(configure(train__steps=1, checkpoint__every=0, **prior, **bits), tmp_path / str(number))
    made = list((tmp_path / "cache" / "class-images").glob("*/*.png"))
    assert len(made) == 2


def test_gradients_added_up_one_by_one_equal_those_of_the_batch(tiny_base, configure):
    family = load_family(Model(base=str(tiny_base)))
    parameters = configure().adapter.attach(family.models, "new", 0).parameters
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.rand(4, 4, 8, 8, generator=generator) for _ in range(2))

    def gradients(*groups):
        """Return the gradients for instance examples and as many class examples at each group of positions."""
        for parameter in parameters:
            parameter.grad = None
        for places in groups:
            pairs = [*places, *(2 + place for place in places)]
            captions = [f"a red house {place}" for place in pairs]
            batch = Batch(mean[pairs], std[pairs], captions, None, pairs, instances=len(places))
            loss = training_step(family, family.process, batch, encode, Loss(), 0.7, 3, 5)
            (loss / len(groups)).backward()
        return [parameter.grad.clone() for parameter in parameters]

    def encode(captions, chunks):
        return family.encode_text(family.tokenize(captions))

    whole, added = gradients([0, 1]), gradients([0], [1])
    assert max(gradient.abs().max() for gradient in whole) > 0
    for one, other in zip(whole, added, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("text", "trained"), [(False, {"unet"}), (True, {"unet", "text_encoder"})])
def test_parts_are_on_the_device_when_they_are_at_work(configure, tmp_path, monkeypatch, text, trained):
    """No card here: what would be there is noted, and nothing moves."""
    placed = []
    monkeypatch.setattr(ComponentOffload, "_place", lambda self, names: placed.append(set(names)))
    config = configure(
        train__offload=True, train__steps=2, adapter__text_encoder=text, checkpoint__every=0, sample__every=2,
        sample__prompts=["a red house"], sample__steps=1, prior__weight=1.0, prior__class_prompt="a house",
        prior__count=1, prior__steps=1,
    )  # fmt: skip
    _, events, _ = train_in_process(config, tmp_path / "run")
    everything = {"unet", "text_encoder", "vae"}
    expected = [everything, {"vae"}, {"text_encoder"}, trained, everything, trained, everything, trained]
    assert placed == expected  # class pictures, encoding, captions; before the first step and after the last a preview
    notices = [event.message for event in events_of(Notice, events)]
    assert "train.offload is not used: on a CPU parts have nowhere else to wait" in notices


def test_a_preview_for_which_the_parts_do_not_fit_together_costs_no_run(configure, tmp_path, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ComponentOffload, "for_generation", full)
    config = configure(train__steps=2, sample__every=2, sample__prompts=["a red house"], sample__steps=1)
    finished, events, _ = train_in_process(config, tmp_path / "run")
    assert finished and not events_of(SampleReady, events)
    assert sum("the device has too little memory for it" in event.message for event in events_of(Notice, events)) == 2


def test_checkpointing_changes_no_gradient(configure, tmp_path):
    for name, on in (("plain", False), ("twice", True)):
        train_in_process(configure(train__steps=2, train__gradient_checkpointing=on), tmp_path / name)
    assert (
        max_file_difference(tmp_path / "plain" / "adapter.safetensors", tmp_path / "twice" / "adapter.safetensors")
        < 1e-5
    )
