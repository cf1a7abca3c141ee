"""The drawing process: one base kept, adapters mixed, requests in order, cancelled, waiting, and its end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from sdlora.api.adapters import exported_file, list_adapters
from sdlora.api.training import TrainingQueue, prepare_run, start_run
from sdlora.errors import BusyError
from sdlora.events import StepDone
from sdlora.filesystem.locks import hold_lock
from sdlora.formats import read_adapter, write_adapter
from sdlora.generation.infotext import read_parameters
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.inference.inference_client import InferenceClient
from sdlora.storage.device_lock import device_lock
from tests.support.adapters import random_lora
from tests.support.inference import PATIENCE, wait_for_job


@pytest.fixture(scope="module")
def creator(tmp_path_factory):
    creator = InferenceClient(tmp_path_factory.mktemp("creations"), "cpu")
    yield creator
    creator.close()


@pytest.fixture
def request_for(tiny_base):
    return lambda **values: GenerationRequest(
        **{"prompt": "a red house", "seed": 7, "steps": 2, "base": str(tiny_base)} | values
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two strong adapter files."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = [folder / "one.safetensors", folder / "two.safetensors"]
    for seed, path in enumerate(paths):
        write_adapter(random_lora(seed=seed), path)
    return [str(path) for path in paths]


def draw(creator, request):
    return wait_for_job(creator, creator.submit(request).number)


def pixels(ticket):
    assert ticket.state == "done", ticket
    return np.stack([np.asarray(Image.open(path)) for path in ticket.paths])


def test_pictures_are_files_with_their_parameters(creator, request_for):
    ticket, _ = draw(creator, request_for(count=2))
    assert [path.parent for path in ticket.paths] == [creator.data_dir / "creations"] * 2
    assert [read_parameters(path).settings["Seed"] for path in ticket.paths] == ["7", "8"]
    assert (ticket.done, ticket.total) == (4, 4)


def test_scales_and_adapters_change_without_loading_the_base_again(creator, request_for, adapters):
    one, two = adapters
    plain, _ = draw(creator, request_for())
    mixed, seen = draw(creator, request_for(adapters=(AdapterChoice("one", one, 1.0), AdapterChoice("two", two, 0.5))))
    assert "loading" not in seen
    off, seen = draw(creator, request_for(adapters=(AdapterChoice("one", one, 0.0), AdapterChoice("two", two, 0.0))))
    assert "loading" not in seen
    other, _ = draw(creator, request_for(adapters=(AdapterChoice("two", two, 0.5),)))
    again, _ = draw(creator, request_for(adapters=(AdapterChoice("one", one, 1.0), AdapterChoice("two", two, 0.5))))
    none, _ = draw(creator, request_for())
    assert (pixels(plain) == pixels(off)).all() and (pixels(plain) == pixels(none)).all()
    assert (pixels(mixed) == pixels(again)).all()
    assert (pixels(mixed) != pixels(plain)).any() and (pixels(mixed) != pixels(other)).any()


def test_what_is_said_of_a_base_loads_it_anew_and_how_to_compute_does_not(creator, request_for, tmp_path):
    write_adapter(random_lora(**{"modelspec.prediction_type": "v"}), tmp_path / "fast.safetensors")
    fast = (AdapterChoice("fast", str(tmp_path / "fast.safetensors")),)
    draw(creator, request_for())
    for _ in range(2):  # It stays loaded, and is told of again.
        plain, seen = draw(creator, request_for(adapters=fast))
        assert "loading" not in seen
        assert "adapter 'fast' was trained with prediction_type v_prediction" in plain.message
        assert "--prediction-type v_prediction" in plain.message
    overrides = {"base_settings": {"prediction_type": "v_prediction"}}
    velocity, seen = draw(creator, request_for(adapters=fast, **overrides))
    assert "loading" in seen and velocity.message == ""
    assert (pixels(velocity) != pixels(plain)).any()
    tiled, seen = draw(creator, request_for(adapters=fast, engine={"vae_tiling": "on"}, **overrides))
    assert "loading" not in seen and (pixels(tiled) == pixels(velocity)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engine": {"offload": "model"}}, "offload = model: the model is on the CPU already"),
        ({"base_settings": {"zero_terminal_snr": "on"}}, "model.prediction_type = v_prediction"),
        ({"base": "nothing"}, "there is no 'nothing'"),
        ({"width": 65}, "width = 65"),
        ({"adapters": (AdapterChoice("gone", "/gone.safetensors"),)}, "gone.safetensors"),
        ({"prompt": "<lora:unknown:1>"}, "no adapter 'unknown'"),
    ],
)
def test_what_goes_wrong_comes_back_as_a_sentence_and_the_next_request_works(creator, request_for, wrong, message):
    ticket, _ = draw(creator, request_for(**wrong))
    assert ticket.state == "failed"
    assert message in ticket.message
    assert draw(creator, request_for())[0].state == "done"


def test_a_request_waits_for_a_held_device_says_so_and_can_be_cancelled(creator, request_for):
    with hold_lock(device_lock(creator.data_dir, torch.device("cpu")), "the device"):
        first = creator.submit(request_for()).number
        second = creator.submit(request_for()).number
        waiting, _ = wait_for_job(creator, first, lambda ticket: ticket.state == "waiting")
        assert "training is using cpu" in waiting.message
        assert creator.queued_before(second) == 1
        creator.cancel(second)
    assert wait_for_job(creator, first)[0].state == "done"
    cancelled, _ = wait_for_job(creator, second)
    assert (cancelled.state, cancelled.paths) == ("cancelled", ())


def test_a_training_draws_between_its_steps_and_when_it_is_killed_the_painter_goes_on(
    configure, request_for, adapters, tmp_path
):
    creator = InferenceClient(tmp_path, "cpu")
    try:
        plain, _ = draw(creator, request_for(adapters=(AdapterChoice("one", adapters[0]),)))
        training = start_run(configure(train__steps=100_000, checkpoint__every=0), "long", tmp_path)
        next(event for event in training.events() if isinstance(event, StepDone))
        beside, seen = draw(creator, request_for(adapters=(AdapterChoice("one", adapters[0]),)))
        assert training.process.poll() is None
        assert seen[-1] == "done" and "loading" not in seen, beside
        assert (pixels(plain) == pixels(beside)).all()

        number = creator.submit(request_for(count=500)).number
        drawing, _ = wait_for_job(creator, number, lambda ticket: ticket.state == "drawing")
        assert drawing.message == "Drawing between training steps"
        training.process.kill()
        wait_for_job(creator, number, lambda ticket: ticket.message == "Drawing")
        creator.cancel(number)
        assert wait_for_job(creator, number)[0].state == "cancelled"
        assert list((tmp_path / "locks").glob("*.requests/*")) == []
    finally:
        creator.close()


def test_a_cancelled_request_keeps_its_finished_pictures(creator, request_for):
    number = creator.submit(request_for(count=500)).number
    wait_for_job(creator, number, lambda ticket: ticket.done > 3)
    creator.cancel(number)
    ticket, _ = wait_for_job(creator, number)
    assert ticket.state == "cancelled"
    assert 1 <= len(ticket.paths) < 500


def test_the_device_is_free_between_requests(creator, request_for):
    draw(creator, request_for())
    hold_lock(device_lock(creator.data_dir, torch.device("cpu")), "the device").release()


def test_a_killed_process_is_told_and_the_next_request_starts_another(creator, request_for):
    number = creator.submit(request_for(count=500)).number
    wait_for_job(creator, number, lambda ticket: ticket.done > 0)
    creator._process.kill()
    ticket, _ = wait_for_job(creator, number)
    assert ticket.state == "failed"
    assert "try again" in ticket.message
    assert draw(creator, request_for())[0].state == "done"


def test_the_process_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import json, sys, time; from pathlib import Path;"
        "from sdlora.inference.inference_client import InferenceClient;"
        "from sdlora.inference.generation_request import GenerationRequest;"
        "creator = InferenceClient(Path(sys.argv[1]), 'cpu');"
        "creator.submit(GenerationRequest(prompt='x', base='nothing'));"
        "print(json.dumps(creator._process.pid), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    child = psutil.Process(json.loads(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(PATIENCE)


def test_the_queue_trains_one_run_after_the_other(configure, tmp_path):
    queue = TrainingQueue(tmp_path)
    first, second = (prepare_run(configure(checkpoint__every=0), name, tmp_path) for name in ("first", "second"))
    with hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device"):
        queue.add(first)
        queue.add(second)
        queue.tick()
        assert [queue.state(run) for run in (first, second)] == ["queued", "queued"]
    tick_until(queue, lambda: queue.state(second) == "finished")
    assert queue.state(first) == "finished"
    assert first.adapter.stat().st_mtime <= second.journal.stat().st_ctime
    names = [name for name, *_ in list_adapters(tmp_path)]
    assert names == ["second", "second-000006", "first", "first-000006"]


def test_a_queued_run_that_is_stopped_never_starts_and_a_running_one_saves(configure, tmp_path):
    queue = TrainingQueue(tmp_path)
    never = prepare_run(configure(), "never", tmp_path)
    queue.add(never)
    queue.stop(never)
    queue.tick()
    assert queue.state(never) == "new"
    run = prepare_run(configure(train__steps=100_000, checkpoint__every=0), "long", tmp_path)
    queue.add(run)
    tick_until(queue, lambda: any(isinstance(event, StepDone) for event in run.events()))
    with pytest.raises(BusyError):
        queue.add(run)
    queue.stop(run)
    assert queue.state(run) == "stopping"
    tick_until(queue, lambda: queue.state(run) == "stopped")


def test_an_export_for_the_page_is_a_file_that_loads(adapters, tmp_path):
    with exported_file(adapters[0], "diffusers", data_dir=tmp_path) as exported:
        assert exported.file.name == "one-diffusers.safetensors"
        again = read_adapter(exported.file)
    assert again.modules.keys() == read_adapter(Path(adapters[0])).modules.keys()


def tick_until(queue, check):
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end
        queue.tick()
        time.sleep(0.05)
