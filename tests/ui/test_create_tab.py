"""The fields of the tab Create, without a browser and without generation."""

import shutil

import gradio as gr
import pytest
import torch
from PIL import Image

from sdlora.adapters.state import ModuleState
from sdlora.api.adapters import AdapterFile
from sdlora.api.generation import GenerationRequest, InferenceClient, JobStatus
from sdlora.errors import ConfigError, ModelError
from sdlora.events import Progress
from sdlora.formats import write_adapter
from sdlora.generation.infotext import RecalledSettings, recall_text
from sdlora.ui import adapter_rows, create_form, create_tab, gallery_panel
from sdlora.ui.app_state import AppState, RunsSnapshot
from tests.support.adapters import UNET_PATHS, random_lora
from tests.support.page_calls import build_create_tab, form_values


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Two adapters of `pocket` and one of another width; what is submitted is kept, not drawn."""
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


@pytest.fixture
def tab(app):
    return build_create_tab(app)


def create(app, tab, *rows, **changed):
    """Press Create with these values filled in; return the page's updates."""
    return create_tab._create(app, tab, form_values(tab.form, *rows, **changed))


def test_the_form_becomes_a_request(app, tab):
    values = {"sampler": "DPM++ 2M", "schedule": "Karras", "clip_skip": 2, "height": 64}
    create(app, tab, ("cat", 0.5), prompt="a house <lora:glass:0.8>", **values)
    [request] = app.sent
    assert [(mixed.name, mixed.scale) for mixed in request.adapters] == [("cat", 0.5), ("glass", 0.0)]
    assert (request.sampler, request.clip_skip, request.width, request.height) == ("DPM++ 2M Karras", 2, None, 64)


def test_settings_of_the_base_and_the_engine_go_with_the_request(app, tab):
    create(app, tab, ("cat", 1.0))
    base_settings = {"prediction_type": "v_prediction", "zero_terminal_snr": "on"}
    create(app, tab, ("cat", 1.0), **base_settings, vae_tiling="on", offload="model")
    usual, request = app.sent
    assert (usual.base_settings, usual.engine) == ({}, {})
    assert (request.base_settings, request.engine) == (base_settings, {"vae_tiling": "on", "offload": "model"})
    assert request.adapters == usual.adapters


def test_another_base_resets_the_settings_of_the_one_before(app, tab):
    form = tab.form
    reset = dict.fromkeys(form.base_settings.values(), "auto")
    fields = (form.base, form.base_settings)
    assert adapter_rows.base_values(app, *fields, "wide", "pocket") == {form.base: "/w", **reset}
    assert adapter_rows.base_values(app, *fields, "cat", "pocket") == gr.skip()
    assert adapter_rows.base_values(app, *fields, "", "pocket") == gr.skip()


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([], {"prompt": " "}, "Describe the picture"),
        ([], {"base": "nothing"}, "there is no &#x27;nothing&#x27;"),
        ([("cat", 1), ("cat", 1)], {}, "chosen twice"),
        (
            [("cat", 1), ("wide", 1)],
            {},
            "cat was trained on pocket and wide was trained on /w: they cannot be mixed",
        ),
        ([], {"prompt": "a <lora:gone:1>"}, "no adapter &#x27;gone&#x27;"),
        ([], {"prompt": "a <lora:cat:x>"}, "is no number; write &lt;lora:name:0.8&gt;"),
    ],
)
def test_an_error_is_shown_before_anything_is_generated(app, tab, rows, changed, message):
    updates = create(app, tab, *rows, **changed)
    assert list(updates) == [tab.form.status]  # The form stays as it is.
    assert message in updates[tab.form.status] and "role='alert'" in updates[tab.form.status]
    assert app.sent == []


def test_adapters_of_one_width_mix_whatever_their_base_is_called(app):
    app.generate(GenerationRequest(prompt="a", base="pocket"), [("cat", 1.0), ("glass", 1.0)])
    with pytest.raises(ConfigError, match="cannot be mixed"):
        app.generate(GenerationRequest(prompt="a", base="pocket"), [("glass", 1.0), ("wide", 1.0)])
    with pytest.raises(ModelError):
        app.generate(GenerationRequest(prompt="a", base="no/such/place"), [])


def test_the_line_below_the_prompt_says_what_goes_before_the_sliders(app, tab):
    def described(prompt):
        return adapter_rows.describe_tags(
            app, tab.form.rows, tab.form.prompt, form_values(tab.form, ("cat", 1.0), prompt=prompt)
        )

    line = described("a <lora:cat:0.8> <lora:glass:0.5:1> <b>")
    assert "cat: 0.8 from the prompt, not its slider" in line and "glass: 0.5 and 1 from the prompt<" in line
    assert described("a house") == ""
    wrong = described("<lora:<b>:1> <lora:o'x:1>")
    assert "alert" in wrong and "o&#x27;x" in wrong and "<b>" not in wrong


def test_trigger_words_come_from_the_file_and_are_added_once(app):
    button = adapter_rows.words_button(app, "cat")
    assert button["visible"] and "cat style" in button["value"]
    assert not adapter_rows.words_button(app, "")["visible"]
    assert adapter_rows.add_words(app, "", "cat") == "cat style"
    assert adapter_rows.add_words(app, "a house", "cat") == "cat style, a house"
    assert adapter_rows.add_words(app, "a house, Cat Style", "cat") == "a house, Cat Style"


def fill(app, form, recalled):
    """Fill the form and return the values by the fields' names, and those of the rows."""
    updates = create_form.fill(app, form, recalled)
    assert updates.keys() <= set(form.filled)
    values = {field: value.get("value") if isinstance(value, dict) else value for field, value in updates.items()}
    names = {**vars(form), **form.numbers, **form.base_settings}
    named = {name: field for name, field in names.items() if isinstance(field, gr.components.Component)}
    filled = {name: values[field] for name, field in named.items() if field in values}
    rows = [(values[name], values[scale]) for name, scale in zip(form.rows.adapters, form.rows.scales, strict=True)]
    return filled, rows, [updates[row]["visible"] for row in form.rows.rows]


def test_a_text_fills_the_fields_and_the_rows(app, tab):
    text = "a <lora:glass:0.75> <lora:cat:-1>\nSteps: 7, Sampler: Euler, Schedule type: Karras, Seed: 5, Model: pocket"
    filled, rows, visible = fill(app, tab.form, recall_text(text, ["cat", "glass"]))
    assert (filled["prompt"], filled["seed"], filled["steps"], filled["base"]) == ("a", 5, 7, "pocket")
    assert (filled["sampler"], filled["schedule"], filled["clip_skip"]) == ("Euler", "Karras", 1)
    assert rows[:3] == [("glass", 0.75), ("cat", -1.0), ("", 1.0)]
    assert visible == [True, True, *[False] * 6]
    assert (filled["prediction_type"], filled["zero_terminal_snr"]) == ("auto", "auto")
    assert "cfg" not in filled and "width" not in filled  # What the text leaves out stays.
    text = f"{text}, Prediction type: v_prediction, Zero terminal SNR: off"
    filled, *_ = fill(app, tab.form, recall_text(text, ["cat"]))
    assert (filled["prediction_type"], filled["zero_terminal_snr"]) == ("v_prediction", "off")


def test_more_adapters_than_rows_stay_in_the_prompt(app, tab):
    recalled = RecalledSettings("a", scales={f"x{n}": 0.5 for n in range(9)})
    filled, rows, _ = fill(app, tab.form, recalled)
    assert filled["prompt"] == "a <lora:x8:0.5>" and rows[-1] == ("x7", 0.5)


def test_another_tab_generates_with_an_adapter_in_one_go(app, tab):
    updates = create_tab.generate_with(app, tab, "wide", "a red car")
    assert updates.keys() <= set(tab.generated)
    assert app.sent == []  # The page says that its base is missing.
    assert "there is no" in updates[tab.form.status]
    create_tab.generate_with(app, tab, "glass", "a red car")
    [request] = app.sent
    assert (request.prompt, request.base, request.seed) == ("a red car", "pocket", -1)
    assert [mixed.name for mixed in request.adapters] == ["glass"]


def test_the_time_left_is_told_once_two_steps_are_known(app):
    job = JobStatus(3, GenerationRequest(prompt="a"))
    assert "left" not in create_tab.describe(app, job.after(Progress(phase="drawing", done=10, total=50)))
    text = create_tab.describe(app, job.after(Progress(phase="drawing", done=30, total=50), left=4.0))
    assert "Drawing: step 30 of 50 · 4 s left" in text


def test_a_picture_goes_to_the_trash_and_comes_back(app, tab):
    app.images_folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(app.images_folder / "2026-1.png")
    panel, form = tab.gallery, tab.form
    updates = gallery_panel._delete(app, panel, "2026-1.png", 24)
    assert updates[panel.undo]["visible"] and not updates[panel.about]["visible"]
    assert updates[panel.gallery]["value"] == [] and not updates[panel.older]["visible"]
    updates = gallery_panel._undo(app, panel, updates[panel.deleted], 24)
    assert "is back" in updates[panel.message] and not updates[panel.undo]["visible"]
    assert len(updates[panel.gallery]["value"]) == 1
    assert list(gallery_panel._reuse(app, form, panel, "2026-1.png")) == [panel.message]  # It has no parameters.


def test_a_name_of_the_models_folder_is_offered_drawn_with_and_found_again(app, tab, tiny_base, monkeypatch):
    monkeypatch.delenv("SDLORA_MODELS", raising=False)
    assert [name for name, _ in app.base_choices()] == ["pocket"]
    place = app.data_dir / "models" / "mine"
    shutil.copytree(tiny_base, place)
    assert app.base_update()["choices"] == [("pocket", "pocket"), ("mine", str(place))]
    assert "value" not in app.base_update()
    create(app, tab, base="mine")
    create(app, tab, base=str(place))
    assert [request.base for request in app.sent] == [str(place)] * 2
    assert create_form.base_called(app, RecalledSettings(model="mine")) == str(place)
