"""Settings of an image are declared once, and one more of them reaches every place by itself."""

import argparse
import inspect
import json
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from pydantic import Field

from sdlora.cli import options
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.families.settings import Model
from sdlora.generation.axes import AXIS_TYPES
from sdlora.generation.generation_spec import SamplingParams
from sdlora.generation.infotext import LIMITS
from sdlora.generation.settings import GenerationSettings, ImageSettings, Prior, Sample, SamplingSettings
from sdlora.generation.xyz_grid import GridCell
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.section import settings
from sdlora.ui import create_form
from sdlora.ui.endpoint_arguments import takes_settings
from sdlora.ui.endpoints import Endpoints
from sdlora.ui.setting_fields import SAMPLE_SETTINGS

OVERRIDES = {Sample: {"steps", "seed"}, Prior: {"sampler", "seed"}}
"""Defaults that differ, each with its reason in the section."""


class Toy(ImageSettings):
    """A setting that does not exist yet."""

    rescale: float = Field(default=0.0, ge=0, le=1)
    """Share of the guidance that is rescaled."""


class ToyParams(Toy, SamplingParams):
    """Parameters of the sampler with it."""


class ToyRequest(Toy, GenerationRequest):
    """A request with it."""


@pytest.mark.parametrize("section", [Sample, Prior, GridCell, GenerationRequest])
def test_every_section_has_the_one_default_but_where_it_says_why(section):
    declared = {setting.name: setting for setting in settings(GenerationSettings)}
    shared = {setting.name: setting for setting in settings(section) if setting.name in declared}
    assert shared.keys() >= SamplingSettings.model_fields.keys()
    differing = {name for name, setting in shared.items() if setting.default != declared[name].default}
    assert differing == OVERRIDES.get(section, set())
    assert all(shared[name].bounds == declared[name].bounds for name in shared if name != "seed")


def test_grids_images_read_back_and_the_page_have_the_declared_bounds():
    bounds = {name: SAMPLE_SETTINGS[name].bounds for name in ("steps", "cfg", "clip_skip")}
    assert bounds == {"steps": (1, 1000), "cfg": (0, 100), "clip_skip": (1, 100)}
    assert {name: LIMITS[name] for name in bounds} == bounds
    assert {name: (AXIS_TYPES[name].least, AXIS_TYPES[name].most) for name in ("steps", "cfg")} == {
        name: bounds[name] for name in ("steps", "cfg")
    }
    assert GenerationRequest().base == Model().base


def test_the_endpoint_takes_every_setting_with_the_declared_default_those_of_before_in_their_order():
    parameters = list(inspect.signature(Endpoints.generate).parameters.values())[1:]
    assert [parameter.name for parameter in parameters] == [
        "prompt", "adapters", "negative", "seed", "steps", "cfg", "sampler", "width", "height", "count", "base",
        "prediction_type", "zero_terminal_snr", "clip_skip",
    ]  # fmt: skip
    declared = GenerationRequest()
    shared = {p.name: p.default for p in parameters if p.name in ImageSettings.model_fields or p.name == "seed"}
    assert shared == {name: getattr(declared, name) for name in shared}


def test_a_further_setting_goes_from_a_flag_through_a_request_to_the_sampler():
    parser = argparse.ArgumentParser()
    options.add_settings(parser, ToyRequest, Toy.model_fields.keys() | {"prompt", "seed", "count"})
    parsed = parser.parse_args(["--prompt", "a cat", "--rescale", "0.7", "--steps", "3"])
    request = options.read_settings(parsed, ToyRequest)
    read = ToyRequest.model_validate_json(json.dumps(request.to_json()))
    assert read == request and (read.rescale, read.steps, read.prompt) == (0.7, 3, "a cat")
    process = SimpleNamespace(supports_scheduler=lambda kind: True)
    family: Any = SimpleNamespace(
        native_size=512, size_step=64, text_layers=12, process=process, generation_defaults={}
    )
    params = ToyParams.resolve(family, read)
    assert (params.rescale, params.steps, params.width) == (0.7, 3, 512)


def test_a_further_number_is_a_field_of_the_page_and_an_argument_of_an_endpoint(monkeypatch):
    monkeypatch.setattr(create_form, "ImageSettings", Toy)
    with gr.Blocks():
        field = create_form._numbers()["rescale"]
    assert (field.label, field.minimum, field.maximum, field.value) == ("Rescale", 0, 1, 0.0)
    assert field.info == "Share of the guidance that is rescaled."

    @takes_settings(ToyRequest, names=("seed", "rescale"), first=("prompt", "seed"))
    def generate(prompt: str, base: str = "", **settings: Any) -> None:
        """Generate images."""

    assert list(inspect.signature(generate).parameters) == ["prompt", "seed", "base", "rescale"]
    assert generate.__annotations__["rescale"] is float and "rescale: Share of" in generate.__doc__


def test_a_request_keeps_its_keys_in_json():
    request = GenerationRequest(prompt="x", adapters=(AdapterChoice("one", "/one.safetensors", 0.5),))
    values = json.loads(request.model_dump_json())
    assert values.keys() == {
        "prompt", "negative", "seed", "steps", "cfg", "width", "height", "count", "sampler", "base", "adapters",
        "clip_skip", "grid", "base_settings", "engine",
    }  # fmt: skip
    assert values["adapters"] == [["one", "/one.safetensors", 0.5]]
    assert GenerationRequest.model_validate(values) == request


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps = 0: input should be"),
        ({"steps": "many"}, "steps = 'many': input should be"),
        ({"stpes": 3}, "there is no setting stpes; did you mean steps"),
        ({"sampler": "Eulr"}, "Euler"),
        ({"cfg": float("nan")}, "cfg = nan"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values, message):
    with pytest.raises(ConfigError, match=message):
        GenerationRequest.checked(**values)


def test_the_configs_sections_keep_their_names_and_order():
    names = [setting.name for setting in settings(TrainConfig) if setting.name.startswith(("prior.", "sample."))]
    assert names == [
        "prior.weight", "prior.class_prompt", "prior.folder", "prior.target", "prior.outside_masks",
        "prior.count", "prior.seed", "prior.negative", "prior.steps", "prior.cfg", "prior.sampler", "sample.every",
        "sample.prompts", "sample.seed", "sample.negative", "sample.steps", "sample.cfg", "sample.sampler",
        "sample.clip_skip", "sample.width", "sample.height",
    ]  # fmt: skip
