"""Memory estimates on the meta device, against the bytes of a real step's tensors."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from sdlora.data.images import ImageSize
from sdlora.optim import Optimizer
from sdlora.training import prepare, profiling
from sdlora.training.distributed import Distributed
from sdlora.training.memory_estimate import StorageCounter, estimate_memory, largest_size, optimizer_bytes
from sdlora.training.trainer import TrainLoop
from tests.support.training import train_job


def alive(job):
    """The most bytes of tensors that are alive in a real step, the second."""
    distributed = Distributed.setup(job.train, job.output)
    family = prepare.load_base(job, distributed)
    train_state = profiling._prepare(job, distributed, family)
    loop = TrainLoop(job, distributed, train_state)
    loop.step(0)
    counted = StorageCounter()
    with counted:
        parts = [*family.models.values(), family.vae]
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        for tensor in [*tensors, *tree_leaves(dict(train_state.trained.optimizer.state))]:
            if isinstance(tensor, torch.Tensor):
                counted.see(tensor)
        loop.step(1)
    return counted.most


CASES = {
    "prior": {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 1, "prior__steps": 1},
    "text frozen, twice": {"adapter__text_encoder": False, "train__gradient_checkpointing": True},
    "int8": {"model__quantize": "int8"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_counted_peak_of_a_step_is_that_of_a_real_step(configure, tmp_path, case):
    job = train_job(configure(train__batch_size=4, **CASES[case]), tmp_path)
    counted = estimate_memory(job, ImageSize(64, 64), torch.float32, on_card=False).step
    assert counted == pytest.approx(alive(job), rel=0.02)


def test_what_waits_in_main_memory_is_not_counted_where_there_is_a_card(configure, tmp_path):
    frozen = {"adapter__text_encoder": False, "train__batch_size": 1}
    held = train_job(configure(**frozen), tmp_path)
    plain = estimate_memory(held, ImageSize(64, 64), torch.float32)
    waiting = train_job(configure(**frozen, train__offload=True), tmp_path)
    found = estimate_memory(waiting, ImageSize(64, 64), torch.float32)
    assert found.weights < plain.weights and found.step < plain.step and found.encoding < plain.encoding
    assert estimate_memory(waiting, ImageSize(64, 64), torch.float32, on_card=False) == estimate_memory(
        held, ImageSize(64, 64), torch.float32, on_card=False
    )


def test_pictures_are_drawn_with_all_parts_and_only_where_some_are_asked_for(configure, tmp_path):
    assert estimate_memory(train_job(configure(), tmp_path), ImageSize(64, 64), torch.float32).generation == 0
    generating = train_job(configure(sample__every=2, sample__prompts=["a house"], train__offload=True), tmp_path)
    found = estimate_memory(generating, ImageSize(64, 64), torch.float32)
    assert found.generation > found.weights and found.peak == max(found.step, found.encoding, found.generation)


def test_the_largest_size_is_that_of_the_pictures_buckets(configure, tmp_path):
    assert largest_size(train_job(configure(), tmp_path)) == ImageSize(64, 64)
    assert largest_size(train_job(configure(data__resolution=128), tmp_path)) == ImageSize(128, 128)


@pytest.mark.parametrize(("name", "bytes_each"), [("adamw", 8), ("lion", 4)])
def test_an_optimizers_bytes_are_those_that_it_keeps(name, bytes_each):
    shapes = [(64, 128), (128, 64)]
    assert optimizer_bytes(Optimizer(name=name), shapes) == pytest.approx(2 * 64 * 128 * bytes_each, abs=64)


def test_moments_in_eight_bits_take_a_quarter():
    pytest.importorskip("bitsandbytes")
    whole, few = (optimizer_bytes(Optimizer(name=name), [(256, 256)]) for name in ("adamw", "adamw8bit"))
    assert few < 0.3 * whole


def test_a_model_of_true_width_is_counted_too(configure, tmp_path):
    """Some products are another library's from a size on (``training.products``), which no tiny model reaches."""
    job = train_job(configure(model__base="pocket", train__batch_size=2), tmp_path)
    found = estimate_memory(job, ImageSize(128, 128), torch.float32, on_card=False)
    assert found.step > found.weights > 0
