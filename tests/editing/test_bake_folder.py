"""A merged model is the base with its adapters, in any tool: plain diffusers draws with it what the studio draws."""

import json
import zipfile

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdlora.adapters import attach
from sdlora.adapters.compatibility import low_rank_shapes
from sdlora.adapters.fused import fuse
from sdlora.adapters.state import ModuleState
from sdlora.adapters.targets import adaptable_layers
from sdlora.api.adapter_jobs import bake_job
from sdlora.editing import bake
from sdlora.errors import ConfigError, MismatchError
from sdlora.events import Progress
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats import read_adapter, write_adapter
from sdlora.generation.studio import Studio
from tests.support.adapters import random_lora

DRAW = {"prompt": "a red house", "seed": 3, "steps": 3}


@pytest.fixture(scope="module")
def adapters(tiny_base, tmp_path_factory):
    """Two adapters of some strength, over all attention layers."""
    folder = tmp_path_factory.mktemp("adapters")
    family = load_family(Model(base=str(tiny_base)))
    paths = []
    for number in (1, 2):
        noise = torch.Generator().manual_seed(number)
        modules = {
            path: ModuleState(dict(zip(("down", "up"), _drawn(layer, noise), strict=True)), 4.0)
            for path, layer in adaptable_layers(family.models)
            if path.endswith(("to_k", "q_proj"))
        }
        attach.attach_modules(family.models, modules, str(number))
        paths.append(folder / f"{number}.safetensors")
        write_adapter(attach.read_state(family.models, str(number)), paths[-1])
    return paths


def _drawn(layer, noise):
    return [torch.randn(shape, generator=noise) * 0.5 for shape in low_rank_shapes(layer, 4)]


def mixed(base, adapters, scales):
    studio = Studio(str(base), device="cpu", precision="fp32")
    for number, (path, scale) in enumerate(zip(adapters, scales, strict=True)):
        studio.add_adapter(str(number), path, scale)
    return np.asarray(studio.generate(**DRAW)[0], np.float32)


def test_a_merged_model_draws_what_the_base_draws_with_its_adapters(tiny_base, adapters, tmp_path):
    scales, phases = (0.8, -0.5), []
    named = [(path.stem, path, scale) for path, scale in zip(adapters, scales, strict=True)]
    folder = bake(str(tiny_base), named, tmp_path / "merged", "fp32", phases.append)
    phases = [event.phase for event in phases]
    expected = mixed(tiny_base, adapters, scales)
    assert np.abs(expected - mixed(tiny_base, [], [])).max() > 2  # They do change the picture.
    assert np.abs(mixed(folder, [], []) - expected).max() <= 1
    assert phases[0] == "loading the base model" and phases[-1] == "writing the model"
    assert json.loads((folder / "merged.json").read_text())["adapters"] == [
        {"name": "1", "scale": 0.8},
        {"name": "2", "scale": -0.5},
    ]


def test_plain_diffusers_loads_the_weights_that_the_sum_gives(tiny_base, adapters, tmp_path):
    packed = bake(str(tiny_base), [("one", adapters[0], 0.5)], tmp_path / "m.zip", "fp16")
    with zipfile.ZipFile(packed) as pack:
        pack.extractall(tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "m", torch_dtype=torch.float32)
    family = load_family(Model(base=str(tiny_base)))
    attach.load_state(family.models, service_state(adapters[0]), "one")
    fuse(family.models, {"one": 0.5})
    for name, tensor in family.models["unet"].state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], tensor.half().float()), name
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    image = pipeline("a red house", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def service_state(path):
    return read_adapter(path)


def test_nothing_is_overwritten_and_nothing_half_written_stays(tiny_base, adapters, tmp_path):
    named = [("one", adapters[0], 1.0)]
    with pytest.raises(ConfigError, match="exists already"):
        bake(str(tiny_base), named, tmp_path)
    with pytest.raises(ConfigError, match="at least one adapter"):
        bake(str(tiny_base), [], tmp_path / "x")
    with pytest.raises(ConfigError, match="fp32 or fp16"):
        bake(str(tiny_base), named, tmp_path / "x", "bf16")
    with pytest.raises(MismatchError, match="for a base with 16-wide text"):
        bake("pocket", named, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_service_bakes_in_a_process_of_its_own(tiny_base, adapters, tmp_path):
    phases = []
    named, output = [("one", adapters[0], 1.0)], tmp_path / "m"
    bake_job(str(tiny_base), named, output, "fp32").finish(phases.append)
    phases = [event.phase for event in phases if isinstance(event, Progress)]
    assert (output / "model_index.json").is_file()
    assert "folding the adapters in" in phases
    assert not any("was trained with" in phase for phase in phases)
    write_adapter(random_lora(**{"modelspec.prediction_type": "v"}), tmp_path / "fast.safetensors")
    job = bake_job(str(tiny_base), [("fast", tmp_path / "fast.safetensors", 1.0)], tmp_path / "f", "fp32")
    job.finish()
    assert [note.partition(" was")[0] for note in job.notices] == ["adapter 'fast'"]
    with pytest.raises(ConfigError, match="its noise schedule ends in noise alone"):
        bake_job(str(tiny_base), named, tmp_path / "n", base_settings={"zero_terminal_snr": "on"}).finish()
    with pytest.raises(ConfigError, match="exists already"):
        bake_job(str(tiny_base), named, output).finish()
