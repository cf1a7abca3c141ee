"""Pictures drawn between the steps of a training: the same pictures, the same training, and when it declines."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdlora.adapters import attach
from sdlora.adapters.lora import Lora
from sdlora.events import StepDone, Waiting
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats import write_adapter
from sdlora.generation import memory
from sdlora.generation.settings import Engine
from sdlora.generation.studio import Studio
from sdlora.inference.device_requests import DeviceRequests
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest, JobStatus
from sdlora.inference.inline_inference import InlineInference
from sdlora.storage.gallery import images_folder
from sdlora.training.prepare import TRAINED_ADAPTER
from tests.support.adapters import random_lora
from tests.support.training import train_in_process

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def mixed(tiny_base, tmp_path_factory):
    """An adapter on layers that train, one on convolutions that do not, and one called as the page might call a run."""
    folder = tmp_path_factory.mktemp("adapters")
    models = Studio(str(tiny_base), device="cpu").family.models
    Lora(targets="linear+conv", rank=2, text_encoder=False).attach(models, "conv", seed=3)
    for _, layer in attach.attached_layers(models, "conv"):
        layer.assign(down=layer.tensors["down"], up=torch.randn(layer.tensors["up"].shape) / 4)
    states = {"training": random_lora(), "conv": attach.read_state(models, "conv")}
    for name, state in states.items():
        write_adapter(state, folder / f"{name}.safetensors")
    return tuple(AdapterChoice(name, str(folder / f"{name}.safetensors"), 0.7) for name in states)


@pytest.fixture
def ask(tiny_base):
    """A request over the tiny base."""
    return lambda **values: GenerationRequest(
        **{"prompt": "a red house", "seed": 7, "steps": 2, "base": str(tiny_base)} | values
    )


@pytest.fixture
def requests(tmp_path):
    requests = DeviceRequests(tmp_path / "locks" / "cpu-here.lock")
    requests.open()
    return requests


@pytest.fixture
def inline(requests, tmp_path, tiny_base):
    return InlineInference(requests, tmp_path, Model(base=str(tiny_base)), lambda: False, several=False)


@pytest.fixture
def training(tiny_base):
    """The tiny base as it is between two steps: an adapter that trains, active, everything in training mode."""
    family = Studio(str(tiny_base), device="cpu").family
    for parameter in Lora(rank=2, dropout=0.1).attach(family.models, TRAINED_ADAPTER, seed=1).parameters:
        torch.nn.init.normal_(parameter)
    for model in family.models.values():
        model.train()
    return family


def standing(family):
    """All of a model and of the process that a drawing could disturb."""
    modules = [
        (path, id(module), module.training) for m in family.models.values() for path, module in m.named_modules()
    ]
    parameters = [
        (id(parameter), parameter.requires_grad, parameter.grad is None, parameter.detach().clone())
        for model in (*family.models.values(), family.vae)
        for parameter in model.parameters()
    ]
    adapter_layers = [
        (path, list(adapter_layer.active_adapters), dict(adapter_layer.scales))
        for path, adapter_layer in attach.adapter_layers_in(family.models)
    ]
    configs = [list(getattr(model, "peft_config", {})) for model in family.models.values()]
    return modules, parameters, adapter_layers, configs, torch.get_rng_state(), torch.is_grad_enabled()


def assert_as_before(before, after):
    assert before[0] == after[0] and before[2:4] == after[2:4] and before[5] == after[5]
    assert torch.equal(before[4], after[4])
    for one, other in zip(before[1], after[1], strict=True):
        assert one[:3] == other[:3] and torch.equal(one[3], other[3])


def status(submitted):
    """The status of a request after all of its events."""
    found = JobStatus(1, GenerationRequest())
    for event in submitted.events():
        found = found.after(event)
    return found


def pictures(folder, answer):
    return np.stack([np.asarray(Image.open(images_folder(folder) / path)) for path in answer.paths])


def test_pictures_between_steps_change_no_bit_of_the_training_and_are_those_of_a_studio(
    configure, tmp_path, requests, inline, ask, mixed, tiny_base
):
    config = configure(adapter__dropout=0.1, train__gradient_checkpointing=True, checkpoint__every=0)
    _, plain, alone = train_in_process(config, tmp_path / "alone" / "run")
    wanted = [ask(), ask(adapters=mixed, count=2), ask(adapters=mixed[1:], sampler="Euler a")]
    answers = []

    def between(family):
        if len(answers) < len(wanted):
            submitted = requests.submit(wanted[len(answers)])
            before = standing(family)
            inline._next_time = 0.0
            inline(family)
            assert_as_before(before, standing(family))
            answers.append(status(submitted))
            submitted.close()

    _, served, beside = train_in_process(config, tmp_path / "beside" / "run", between_steps=between)
    losses = [[event.loss for event in events if isinstance(event, StepDone)] for events in (plain, served)]
    assert losses[0] == losses[1]
    one, other = load_file(alone.adapter), load_file(beside.adapter)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    studio = Studio(str(tiny_base), device="cpu")
    for request, answer in zip(wanted, answers, strict=True):
        assert answer.state == "done", answer
        for name, path, scale in request.adapters:
            studio.add_adapter(name, path, scale)
        own = studio.generate(request.prompt, seed=7, steps=2, count=request.count, sampler=request.sampler)
        assert (pictures(tmp_path, answer) == np.stack([np.asarray(image) for image in own])).all()
        for name in studio.adapters:
            studio.remove_adapter(name)


def test_the_adapter_in_training_is_not_seen_in_the_pictures(inline, requests, training, ask, tiny_base, tmp_path):
    [with_it] = Studio.from_family(training).generate("a red house", seed=7, steps=2)
    [without] = Studio(str(tiny_base), device="cpu").generate("a red house", seed=7, steps=2)
    submitted, before = requests.submit(ask()), standing(training)
    inline(training)
    assert_as_before(before, standing(training))
    [image] = pictures(tmp_path, status(submitted))
    assert (image == np.asarray(without)).all() and (image != np.asarray(with_it)).any()
    submitted.close()


def test_a_training_that_says_the_same_of_its_base_draws(requests, tiny_base, ask, tmp_path):
    overrides = {"prediction_type": "v_prediction", "zero_terminal_snr": "on"}
    model = Model(base=str(tiny_base), **overrides)
    studio = Studio(model, device="cpu")
    submitted = requests.submit(ask(base_settings=overrides, width=128, height=128, engine={"vae_tiling": "on"}))
    InlineInference(requests, tmp_path, model, lambda: False, several=False)(studio.family)
    [image] = pictures(tmp_path, status(submitted))
    submitted.close()
    studio.runtime.use(Engine(vae_tiling="on"))
    [own] = studio.generate("a red house", seed=7, steps=2, width=128, height=128)
    assert (image == np.asarray(own)).all()
    studio.runtime.use(Engine(vae_tiling="off"))
    [whole] = studio.generate("a red house", seed=7, steps=2, width=128, height=128)
    assert (image != np.asarray(whole)).any()


def test_what_is_done_between_steps_does_not_count_as_their_time(configure, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sdlora.training.trainer.time.monotonic", lambda: clock[0])

    def between(family):
        clock[0] += 100

    _, events, _ = train_in_process(configure(), tmp_path / "run", between_steps=between)
    assert {event.left for event in events if isinstance(event, StepDone)} == {0.0}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"base": "pocket"}, "training of another base"),
        ({"base_settings": {"prediction_type": "v_prediction"}}, "training with other settings of this base"),
        ({"several": True}, "in several processes"),
        ({"free": 0}, "too little memory for a picture of 64x64 .* needed and 0 B free"),
        ({"raises": torch.OutOfMemoryError("CUDA out of memory")}, "too little memory for these"),
        ({"raises": RuntimeError("DefaultCPUAllocator: can't allocate memory")}, "too little memory for these"),
    ],
)
def test_a_request_that_a_training_cannot_draw_stays_and_says_why(
    inline, requests, training, ask, monkeypatch, mixed, wrong, reason
):
    def fail(*_):
        raise wrong["raises"]

    inline.several = wrong.get("several", False)
    if "free" in wrong:
        monkeypatch.setattr(memory, "free_bytes", lambda device: wrong["free"])
    if "raises" in wrong:
        monkeypatch.setattr("sdlora.generation.studio.sample_images", fail)
    request = ask(adapters=mixed, **{name: value for name, value in wrong.items() if name.startswith("base")})
    submitted, before = requests.submit(request), standing(training)
    inline(training)
    inline(training)
    assert_as_before(before, standing(training))
    answer = [event for event in submitted.events() if isinstance(event, Waiting)]
    assert len(answer) == 1
    assert re.search(reason, answer[0].message) and "after the training" in answer[0].message
    assert submitted.withdraw()
    submitted.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": "nothing"}, "there is no 'nothing'"),
        ({"width": 65}, "width = 65"),
        ({"adapters": (AdapterChoice("gone", "/gone.safetensors"),)}, "gone.safetensors"),
    ],
)
def test_what_is_wrong_with_a_request_comes_back_as_a_sentence(inline, requests, training, ask, wrong, message):
    submitted, before = requests.submit(ask(**wrong)), standing(training)
    inline(training)
    assert_as_before(before, standing(training))
    answer = status(submitted)
    assert answer.state == "failed" and message in answer.message
    submitted.close()


def test_a_bug_in_a_drawing_is_told_and_does_not_reach_the_training(inline, requests, training, ask, monkeypatch):
    monkeypatch.setattr("sdlora.generation.studio.sample_images", lambda *_: 1 / 0)
    submitted = requests.submit(ask())
    inline(training)
    assert "ZeroDivisionError" in status(submitted).message
    submitted.close()


def test_a_training_that_is_stopped_in_mid_drawing_gives_the_request_back(inline, requests, training, ask):
    submitted = requests.submit(ask(count=3))
    inline.should_stop = lambda: any(getattr(event, "done", 0) == 3 for event in submitted.events())
    inline(training)
    answer = status(submitted)
    assert answer.state == "waiting" and "being stopped" in answer.message
    assert not images_folder(inline.data_dir).exists()
    assert requests.take().request == ask(count=3)
    submitted.close()


def test_a_cancelled_request_ends_in_mid_drawing_and_keeps_its_finished_pictures(
    inline, requests, training, ask, monkeypatch
):
    submitted = requests.submit(ask(count=3))
    inline.should_stop = lambda: (
        any(getattr(event, "done", 0) == 3 for event in submitted.events()) and submitted.withdraw()
    )
    inline(training)
    answer = status(submitted)
    assert (answer.state, len(answer.paths)) == ("cancelled", 1)
    submitted.close()


def test_after_a_drawing_the_training_has_its_turn(inline, requests, training, ask, monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 13.0, 14.5, 14.5, 15.0])
    own = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("sdlora.inference.inline_inference.time", own)
    first, second = requests.submit(ask()), requests.submit(ask())
    inline(training)  # From 10 to 12: it has its turn until 14.
    inline(training)
    assert status(first).state == "done" and list(second.events()) == []
    inline(training)
    assert status(second).state == "done"
    first.close()
    second.close()


def test_a_requests_that_cannot_be_read_ends_the_drawing_not_the_training(inline, training, tmp_path):
    inline.requests = DeviceRequests(tmp_path / "gone.lock")
    inline(training)
    inline(training)


def test_an_estimate_of_memory_grows_with_the_size_and_the_batch(training):
    sizes = [memory.generation_bytes(training, side, side, batch) for side, batch in ((512, 1), (1024, 1), (1024, 64))]
    assert sizes == sorted(set(sizes))
    assert memory.free_bytes(torch.device("cpu")) > 0
    bare, mixed = (memory.generation_bytes(training, 64, 64, 1, adapters=size) for size in (0, 2000))
    assert mixed - bare == 10_000  # A thousand numbers of float16: 4 bytes each, and 6 in the stacked pair.


def test_parts_of_the_base_open_only_in_memory_that_no_step_has_reserved(inline, requests, tiny_base, ask, monkeypatch):
    family = load_family(Model(base=str(tiny_base)))
    closed = family.modules.closed_bytes
    submitted = requests.submit(ask())
    monkeypatch.setattr(memory, "unreserved_bytes", lambda device: closed - 1)
    inline(family)
    assert "too little memory for the parts of the base" in status(submitted).message
    assert family.modules.closed_bytes == closed
    submitted.close()
    monkeypatch.undo()
    again = requests.submit(ask())
    inline._next_time = 0.0
    inline(family)
    assert status(again).state == "done" and family.modules.closed_bytes == 0
    again.close()


def test_adapters_that_leave_no_room_are_declined(inline, requests, training, ask, mixed, monkeypatch):
    bare = memory.generation_bytes(training, 64, 64, 1, side=training.tile_size)
    monkeypatch.setattr(memory, "free_bytes", lambda device: bare)
    fits, too_many = (
        requests.submit(ask(width=64, height=64)),
        requests.submit(ask(width=64, height=64, adapters=mixed)),
    )
    inline(training)
    inline._next_time = 0.0
    inline(training)
    assert status(fits).state == "done"
    assert "too little memory for a picture of 64x64" in status(too_many).message
    fits.close()
    too_many.close()
