"""Prediction types that a person and an adapter's header give never differ silently."""

import json
import shutil
import warnings

import numpy as np
import pytest

from sdlora.editing import bake
from sdlora.errors import ConfigError
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats import write_adapter
from sdlora.formats.infer_base import schedule_mismatch, trained_schedule
from sdlora.formats.metadata import Provenance, provenance_metadata
from sdlora.generation.infotext import parse_parameters, recall_text
from sdlora.generation.settings import GenerationSettings
from sdlora.generation.studio import Studio
from tests.support.adapters import TWO_STEPS, random_lora

VELOCITY = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
SAID = {"prediction_type": "v_prediction", "zero_terminal_snr": "on"}


@pytest.fixture
def velocity(tiny_base):
    return Model(base=str(tiny_base), **SAID)


def pixels(studio, **changes):
    [image] = studio.generate("a red house", **TWO_STEPS | changes)
    return np.asarray(image, float), image.info["parameters"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {}),
        ({"modelspec.prediction_type": "sample", "ss_zero_terminal_snr": "perhaps"}, {}),
        (VELOCITY, SAID),
        ({"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ({"ss_zero_terminal_snr": "False"}, {"zero_terminal_snr": "off"}),
    ],
)
def test_what_a_header_tells_of_its_base(metadata, expected):
    assert trained_schedule(metadata) == expected


def test_a_run_writes_what_it_was_trained_with(velocity):
    epsilon = provenance_metadata(Provenance(name="x", family="sd1", base="b"))
    assert trained_schedule(epsilon) == {"prediction_type": "epsilon", "zero_terminal_snr": "off"}
    own = provenance_metadata(
        Provenance(name="x", family="sd1", base="b", prediction_type="v_prediction", zero_terminal_snr=True)
    )
    assert trained_schedule(own) == SAID and schedule_mismatch("x", own, load_family(velocity).scheduler_config) == ""


def test_what_is_said_of_a_base_changes_its_pictures_and_stands_in_their_text(tiny_base, velocity):
    plain, text = pixels(Studio(str(tiny_base), device="cpu"))
    other, message = pixels(Studio(velocity, device="cpu"))
    assert (plain != other).any()
    assert {"Prediction type", "Zero terminal SNR"} & parse_parameters(text).settings.keys() == set()
    assert recall_text(text, ()).base_settings == {}
    read = recall_text(message, ())
    assert (read.base_settings, read.remarks) == (SAID, ())
    [remark] = recall_text(message.replace("v_prediction", "flow"), ()).remarks
    assert "'flow' is unknown here" in remark


def test_a_difference_is_one_sentence_with_its_remedy_at_each_drawing(tiny_base, velocity):
    studio = Studio(str(tiny_base), device="cpu")
    studio.add_adapter("fast", random_lora(**VELOCITY))
    for _ in range(2):
        with pytest.warns(UserWarning) as caught:
            pixels(studio)
        [sentence] = {str(warning.message) for warning in caught if "trained" in str(warning.message)}
        assert "adapter 'fast' was trained with prediction_type v_prediction and zero_terminal_snr on" in sentence
        assert "taken to have prediction_type epsilon and zero_terminal_snr off" in sentence
        assert "--prediction-type v_prediction --zero-terminal-snr on" in sentence
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        studio.set_scale("fast", 0)
        pixels(studio)
        agreeing = Studio(velocity, device="cpu")
        agreeing.add_adapter("fast", random_lora(**VELOCITY))
        pixels(agreeing)
        decided = Studio(Model(base=str(tiny_base), prediction_type="epsilon", zero_terminal_snr="off"), device="cpu")
        decided.add_adapter("fast", random_lora(**VELOCITY))
        pixels(decided)


def test_a_sampler_that_cannot_begin_in_noise_is_refused_before_anything_is_drawn(velocity):
    studio = Studio(velocity, device="cpu")
    with pytest.raises(ConfigError, match="sampler 'Heun': cannot generate with a zero-terminal-SNR model; take DPM"):
        studio.image_spec(GenerationSettings(prompt="a red house", sampler="Heun"))


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler"])
def test_a_merged_model_tells_what_was_said_of_its_base(scheduler, tiny_base, velocity, tmp_path):
    """Drawn as it is, without a word, it gives what the base gives with those words."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    index = base / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", scheduler]}))
    write_adapter(random_lora(**VELOCITY), tmp_path / "a.safetensors")
    overridden = velocity.model_copy(update={"base": str(base)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folder = bake(overridden, [("a", tmp_path / "a.safetensors", 0.5)], tmp_path / "merged", "fp32")
    written = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    able = {"PNDMScheduler": "DDIMScheduler"}.get(scheduler, scheduler)
    assert (written["_class_name"], written["timestep_spacing"]) == (able, "trailing")
    assert (written["prediction_type"], written["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert json.loads((folder / "merged.json").read_text())["prediction_type"] == "v_prediction"
    expected = Studio(overridden, device="cpu", precision="fp32")
    expected.add_adapter("a", tmp_path / "a.safetensors", 0.5)
    found = Studio(str(folder), device="cpu", precision="fp32")
    assert np.abs(pixels(expected)[0] - pixels(found)[0]).max() <= 1


def test_merging_warns_of_a_difference_too(tiny_base, tmp_path):
    write_adapter(random_lora(**VELOCITY), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="adapter 'a' was trained with prediction_type v_prediction"):
        bake(str(tiny_base), [("a", tmp_path / "a.safetensors", 0.5)], tmp_path / "merged", "fp32")
