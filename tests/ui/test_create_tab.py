"""The fields of the tab Create, without a browser and without generation."""

import shutil

import gradio as gr
import pytest

from sdlora.adapters.state import ModuleState
from sdlora.api.adapters import AdapterFile
from sdlora.api.generation import GenerationRequest, InferenceClient, JobStatus
from sdlora.errors import ConfigError, ModelError
from sdlora.formats import write_adapter
from sdlora.generation.infotext import RecalledSettings, recall_text
from sdlora.ui import create_form, create_tab, gallery_panel
from sdlora.ui.app_state import AppState, RunsSnapshot
from tests.support.adapters import UNET_PATHS, random_lora


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Two adapters of `pocket` and one of another width; what is submitted is kept, not drawn."""
    import torch

    wide = random_lora(UNET_PATHS[:1])
    module = ModuleState({"down": torch.ones(2, 32), "up": torch.ones(32, 2)}, alpha=2.0)
    wide.modules[UNET_PATHS[0]] = module
    files = []
    for name, state, base in (
        ("cat", random_lora(), "pocket"),
        ("glass", random_lora(seed=2), "pocket"),
        ("wide", wide, "/w"),
    ):
        state.metadata["modelspec.trigger_phrase"] = f"{name} style"
        write_adapter(state, tmp_path / f"{name}.safetensors")
        files.append(AdapterFile(name, tmp_path / f"{name}.safetensors", base))
    sent = []

    def submit(self, request):
        sent.append(request)
        return JobStatus(len(sent), request)

    monkeypatch.setattr(InferenceClient, "submit", submit)
    monkeypatch.setattr(AppState, "snapshot", lambda self: RunsSnapshot(adapters=tuple(files)))
    app = AppState(tmp_path / "data")
    app.sent = sent
    return app


def values(*rows, prompt="a house", base="pocket", **changed):
    """Values of the fields, in the order of ``CreateForm.values``."""
    start = {
        "negative": "", "count": 1, "seed": -1, "base": base, "sampler": "DPM++ 2M", "schedule": "Karras", "steps": 25,
        "cfg": 7.0, "clip_skip": 2, "width": 0, "height": 64, "prediction_type": "auto", "zero_terminal_snr": "auto",
        "vae_tiling": "auto", "offload": "none", "attention": "sdpa",
    }  # fmt: skip
    empty = [("", 1.0)] * (create_form.ROWS - len(rows))
    names, scales = zip(*rows, *empty, strict=True)
    return [prompt, *(start | changed).values(), *names, *scales]


def test_the_fields_become_a_request(app):
    create_tab._create(app, *values(("cat", 0.5), prompt="a house <lora:glass:0.8>"))
    [request] = app.sent
    assert [(mixed.name, mixed.scale) for mixed in request.adapters] == [("cat", 0.5), ("glass", 0.0)]
    assert (request.sampler, request.clip_skip, request.width, request.height) == ("DPM++ 2M Karras", 2, None, 64)


def test_what_is_said_of_the_base_and_how_to_compute_go_with_the_request(app):
    create_tab._create(app, *values(("cat", 1.0)))
    said = {"prediction_type": "v_prediction", "zero_terminal_snr": "on"}
    create_tab._create(app, *values(("cat", 1.0), **said, vae_tiling="on", offload="model"))
    plain, request = app.sent
    assert (plain.base_settings, plain.engine) == ({}, {})
    assert (request.base_settings, request.engine) == (said, {"vae_tiling": "on", "offload": "model"})
    assert request.adapters == plain.adapters


def test_another_base_takes_along_nothing_that_was_said_of_the_one_before(app):
    assert create_form._base_of(app, "wide", "pocket") == ["/w", "auto", "auto"]
    assert create_form._base_of(app, "cat", "pocket") == [gr.skip()] * 3
    assert create_form._base_of(app, "", "pocket") == [gr.skip()] * 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (values(prompt=" "), "Write what to draw"),
        (values(base="nothing"), "there is no &#x27;nothing&#x27;"),
        (values(("cat", 1), ("cat", 1)), "chosen twice"),
        (values(("cat", 1), ("wide", 1)), "cat was trained on pocket and wide was trained on /w: they cannot be mixed"),
        (values(prompt="a <lora:gone:1>"), "no adapter &#x27;gone&#x27;"),
        (values(prompt="a <lora:cat:x>"), "is no number; write &lt;lora:name:0.8&gt;"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_anything_is_drawn(app, fields, said):
    status = create_tab._create(app, *fields)[1]
    assert said in status and "role='alert'" in status
    assert app.sent == []


def test_adapters_of_one_width_mix_whatever_their_base_is_called(app):
    app.generate(GenerationRequest(prompt="a", base="pocket"), [("cat", 1.0), ("glass", 1.0)])
    with pytest.raises(ConfigError, match="cannot be mixed"):
        app.generate(GenerationRequest(prompt="a", base="pocket"), [("glass", 1.0), ("wide", 1.0)])
    with pytest.raises(ModelError):
        app.generate(GenerationRequest(prompt="a", base="no/such/place"), [])


def test_the_line_below_the_prompt_says_what_goes_before_the_sliders(app):
    rows = ["cat", *[""] * 7, *[1.0] * 8]
    said = create_form._tags(app, "a <lora:cat:0.8> <lora:glass:0.5:1> <b>", *rows)
    assert "cat: 0.8 from the prompt, not its slider" in said and "glass: 0.5 and 1 from the prompt<" in said
    assert create_form._tags(app, "a house", *rows) == ""
    wrong = create_form._tags(app, "<lora:<b>:1> <lora:o'x:1>", *rows)
    assert "alert" in wrong and "o&#x27;x" in wrong and "<b>" not in wrong


def test_trigger_words_come_from_the_file_and_are_added_once(app):
    assert create_form._words_of(app, "cat")["visible"] and "cat style" in create_form._words_of(app, "cat")["value"]
    assert not create_form._words_of(app, "")["visible"]
    assert create_form._say(app, "", "cat") == "cat style"
    assert create_form._say(app, "a house", "cat") == "cat style, a house"
    assert create_form._say(app, "a house, Cat Style", "cat") == "a house, Cat Style"


def fields(app, recalled):
    """The values that ``fill`` gives, by name; None where a field stays."""
    names = [
        "prompt",
        "negative",
        "seed",
        "base",
        "sampler",
        "schedule",
        "steps",
        "cfg",
        "clip_skip",
        "width",
        "height",
        "prediction_type",
        "zero_terminal_snr",
    ]
    filled = create_form.fill(app, recalled)
    assert len(filled) == create_form.FILLED
    plain = [value.get("value") if isinstance(value, dict) else value for value in filled]
    return dict(zip(names, plain, strict=False)), plain[14 + 8 : 14 + 16], plain[14 + 16 :], filled[14 : 14 + 8]


def test_a_text_fills_the_fields_and_the_rows(app):
    text = "a <lora:glass:0.75> <lora:cat:-1>\nSteps: 7, Sampler: Euler, Schedule type: Karras, Seed: 5, Model: pocket"
    filled, names, scales, rows = fields(app, recall_text(text, ["cat", "glass"]))
    assert (filled["prompt"], filled["seed"], filled["steps"], filled["base"]) == ("a", 5, 7, "pocket")
    assert (filled["sampler"], filled["schedule"], filled["clip_skip"]) == ("Euler", "Karras", 1)
    assert (names[:3], scales[:3]) == (["glass", "cat", ""], [0.75, -1.0, 1.0])
    assert [row["visible"] for row in rows] == [True, True, *[False] * 6]
    assert (filled["prediction_type"], filled["zero_terminal_snr"]) == ("auto", "auto")
    filled, *_ = fields(app, recall_text(f"{text}, Prediction type: v_prediction, Zero terminal SNR: off", ["cat"]))
    assert (filled["prediction_type"], filled["zero_terminal_snr"]) == ("v_prediction", "off")


def test_more_adapters_than_rows_stay_in_the_prompt(app):
    recalled = RecalledSettings("a", scales={f"x{n}": 0.5 for n in range(9)})
    filled, names, _, _ = fields(app, recalled)
    assert filled["prompt"] == "a <lora:x8:0.5>" and names[-1] == "x7"


def test_another_tab_draws_with_an_adapter_in_one_go(app):
    made = create_tab.draw_with(app, "wide", "a red car")
    assert app.sent == []  # Its base is not there, which is said.
    assert "there is no" in made[create_form.FILLED + 1]
    create_tab.draw_with(app, "glass", "a red car")
    [request] = app.sent
    assert (request.prompt, request.base, request.seed) == ("a red car", "pocket", -1)
    assert [mixed.name for mixed in request.adapters] == ["glass"]


def test_the_time_left_is_told_once_two_steps_are_known():
    ticket = JobStatus(3, GenerationRequest(prompt="a"), "drawing", done=30, total=50)
    assert create_tab.left(ticket, (3, 10.0, 10), now=14.0) == pytest.approx(4.0)  # 20 steps in 4 s, 20 to go.
    assert create_tab.left(ticket, (2, 10.0, 10), now=14.0) is None
    assert create_tab.left(ticket, (3, 10.0, 30), now=14.0) is None


def test_a_picture_goes_to_the_trash_and_comes_back(app):
    from PIL import Image

    app.images_folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(app.images_folder / "2026-1.png")
    said, gone, undo, about, gallery, older = gallery_panel._delete(app, "2026-1.png", 24)
    assert undo["visible"] and not about["visible"] and gallery["value"] == [] and not older["visible"]
    said, _, undo, _, gallery, _ = gallery_panel._undo(app, gone, 24)
    assert "is back" in said and not undo["visible"] and len(gallery["value"]) == 1
    assert gallery_panel._reuse(app, "2026-1.png")[1:] == [gr.skip()] * create_form.FILLED


def test_a_name_of_the_models_folder_is_offered_drawn_with_and_found_again(app, tiny_base, monkeypatch):
    monkeypatch.delenv("SDLORA_MODELS", raising=False)
    assert [name for name, _ in app.base_choices()] == ["pocket"]
    place = app.data_dir / "models" / "mine"
    shutil.copytree(tiny_base, place)
    assert app.base_update()["choices"] == [("pocket", "pocket"), ("mine", str(place))]
    assert "value" not in app.base_update()
    create_tab._create(app, *values(base="mine"))
    create_tab._create(app, *values(base=str(place)))
    assert [request.base for request in app.sent] == [str(place)] * 2
    assert create_form.base_called(app, RecalledSettings(model="mine")) == str(place)
