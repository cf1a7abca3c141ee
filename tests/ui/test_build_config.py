"""From the page's choices to a config: the preset's values, in the project's words."""

import gradio as gr
import pytest
from PIL import Image

from sdlora.api.training import RunEstimate
from sdlora.config import all_settings
from sdlora.data.class_images import class_prompt
from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import BusyError, SdloraError
from sdlora.jobs.memory_savings import with_settings
from sdlora.storage.run_folder import Run
from sdlora.training.profiling import RunProfile
from sdlora.ui import images_tab, setting_fields, train_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.build_config import (
    DERIVED,
    QUALITY,
    configure,
    describe_disk,
    describe_estimate,
    describe_plan,
    load_preset,
    preview_prompts,
    preview_prompts_of_all,
    suggested_words,
)

STYLE, SUBJECT = ProjectInfo("style", "zwx"), ProjectInfo("subject", "zwx", "fox")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(folder / f"{number}.png")
    project = Project(tmp_path, "red")
    project.set_info(STYLE)
    project.add(sorted(folder.iterdir()))
    return project


def test_quality_multiplies_the_steps_of_the_preset(project):
    steps = {name: configure(project, STYLE, "pocket", name, [], {}).train.steps for name in QUALITY}
    usual = load_preset("pocket", "style").train.steps
    assert steps == {"Quick": usual // 2, "Balanced": usual, "Best": usual * 2}


def test_the_rest_is_as_the_preset_says_and_changes_go_before(project):
    config = configure(project, STYLE, "pocket", "Quick", ["zwx, a car"], {"train.steps": "40", "adapter.rank": "2"})
    assert (config.train.steps, config.adapter.rank, config.checkpoint.every) == (40, 2, 10)
    assert config.train.learning_rate == load_preset("pocket", "style").train.learning_rate
    assert config.data.folder == project.folder
    assert config.sample.prompts == ("zwx, a car",)
    assert describe_plan(config, 4).startswith("40 steps")
    may_stop = configure(project, STYLE, "pocket", "Quick", [], {"train.steps": "40", "train.stop": "plateau"})
    assert describe_plan(may_stop, 4).startswith("40 steps, fewer if it stops early · ")


def test_a_subject_is_called_by_trigger_and_class_everywhere(project):
    config = configure(project, SUBJECT, "pocket", "Quick", [], {})
    assert (config.data.class_name, class_prompt(config.data, config.prior)) == ("fox", "a fox")
    assert preview_prompts("pocket", SUBJECT) == ["a zwx fox on sand", "a fox on sand"]


@pytest.mark.parametrize("base", ["pocket", "someone/some-xl-model", "someone/some-model"])
@pytest.mark.parametrize("kind", ["style", "subject"])
def test_every_base_has_words_and_two_previews(base, kind):
    about = suggested_words(base, kind)
    assert about.trigger
    assert len(preview_prompts(base, about)) == 2


@pytest.mark.parametrize(
    ("about", "base", "changes", "message"),
    [
        (ProjectInfo("style", " "), "pocket", {}, "trigger word"),
        (ProjectInfo("subject", "zwx", ""), "pocket", {}, "what the subject is"),
        (STYLE, " ", {}, "base model"),
        (STYLE, "pocket", {"train.steps": "many"}, "train.steps = 'many'"),
        (STYLE, "pocket", {"adapter.rank": "-1"}, "adapter.rank = '-1'"),
    ],
)
def test_what_is_missing_or_wrong_is_a_sentence(project, about, base, changes, message):
    with pytest.raises(SdloraError, match=message):
        configure(project, about, base, "Quick", [], changes)


def test_without_pictures_the_remedy_is_to_add_some(tmp_path):
    with pytest.raises(SdloraError, match="Add at least 3 pictures"):
        configure(Project(tmp_path, "none"), STYLE, "pocket", "Quick", [], {})


def test_fields_take_label_and_help_from_the_declaration():
    declared = {setting.name: setting for setting in setting_fields.advanced_settings()}
    assert setting_fields.label(declared["prior.weight"]) == "Prior weight"
    for setting in declared.values():
        assert setting_fields.setting_field(setting).info == setting.help


def filled(**values):
    named = {name.replace("__", "."): value for name, value in values.items()}
    return {setting.name: named.get(setting.name, "") for setting in setting_fields.advanced_settings()}


def test_the_form_has_every_setting_but_paths_and_what_the_main_controls_decide():
    shown = {setting.name for setting in setting_fields.advanced_settings()}
    left_out = {setting.name for setting in all_settings()} - shown
    paths = {"model.tokenizer", "data.validation_folder", "prior.folder", "adapter.init"}
    assert left_out == setting_fields.MAIN_CONTROLS | paths
    assert sum(map(len, setting_fields.by_section().values())) == len(shown)


def test_only_what_was_filled_in_counts_as_changed():
    values = filled(train__steps=" 40 ", data__flip="yes", train__text_encoder_stop="None", data__prompt="none")
    expected = {"train.steps": "40", "data.flip": True, "train.text_encoder_stop": None, "data.prompt": "none"}
    assert setting_fields.parse_changes(values) == expected


def test_empty_fields_say_what_the_preset_has():
    known = load_preset("pocket", "style")
    text = setting_fields.placeholders(known, DERIVED)
    assert text["train.learning_rate"]["placeholder"] == "0.002"
    assert text["train.steps"]["placeholder"] == "from the quality"
    assert text["schedule.name"]["choices"][0] == ("as the preset: cosine", "")
    assert text["data.flip"]["choices"][0] == ("as the preset: yes", "")


def test_the_settings_of_a_run_are_filled_in_again_as_they_were(project):
    changes = {"train.steps": "40", "adapter.rank": "2", "train.text_encoder_learning_rate": None, "data.flip": False}
    config = configure(project, STYLE, "pocket", "Quick", ["zwx, a car"], changes)
    values = setting_fields.field_values(config, load_preset("pocket", "style"), DERIVED)
    assert configure(project, STYLE, "pocket", "Best", ["zwx, a car"], setting_fields.parse_changes(values)) == config


def test_a_seed_beyond_what_a_browser_s_numbers_hold_stays_itself(project):
    seed = 2**53 + 1
    values = {setting.name: "" for setting in setting_fields.advanced_settings()} | {"train.seed": str(seed)}
    assert configure(project, STYLE, "pocket", "Best", [], setting_fields.parse_changes(values)).train.seed == seed


def test_what_a_run_will_take_is_said_with_how_that_is_known():
    measured = RunProfile(
        device="cpu", width=64, height=64, load=1, encode=1, step=0.25, sampling=0, picture=0, memory=1_200_000_000
    )
    assert describe_estimate(RunEstimate(400, 10)) == ""
    assert describe_estimate(RunEstimate(400, 10, 100.0)).endswith("as earlier runs with these settings took")
    text = describe_estimate(RunEstimate(400, 10, 100.0, measured.memory, measured))
    assert text == "about 1:40 min · about 1.12 GiB, measured: 0.25 s a step of 64 x 64 on cpu"


def test_what_a_run_will_write_is_said_with_the_largest_parts():
    parts = {"adapter": 6_000_000, "checkpoints": 31_000_000, "states": 37_000_000, "previews": 2_000_000}
    assert describe_disk(parts) == "at most 72.5 MiB of disk: 35.3 MiB states, 29.6 MiB checkpoints, 7.63 MiB others"


def test_a_second_click_makes_no_twin_even_once_the_run_chose_what_fits(tmp_path, configure, monkeypatch):
    app = AppState(tmp_path)
    monkeypatch.setattr(app.queue, "tick", lambda: None)  # It stays in the queue.
    config = configure(train__memory="8GB")
    run = app.train(config, "mine")
    with_settings(run.config, {"train.memory": None, "train.gradient_checkpointing": True}).save(run.config_file)
    with pytest.raises(BusyError, match="mine is queued or trained with these settings already"):
        app.train(config, "mine")
    assert app.train(configure(train__memory="6GB"), "other").name == "other"
    app.close()


def test_a_run_that_goes_on_longer_is_known_by_its_new_length(tmp_path, configure, monkeypatch):
    app = AppState(tmp_path)
    monkeypatch.setattr(app.queue, "tick", lambda: None)
    run = app.train(configure(), "mine")
    app.queue.cancel(run)
    monkeypatch.setattr(
        Run, "lengthen", lambda run, steps: with_settings(run.config, {"train.steps": steps}).save(run.config_file)
    )
    app.extend(run, 50)
    with pytest.raises(BusyError, match="mine is queued or trained with these settings already"):
        app.train(configure(train__steps=50), "again")
    assert app.train(configure(), "shorter").name == "shorter"
    app.close()


@pytest.fixture
def panel(app):
    with gr.Blocks() as demo:
        yield train_panel.build(app, images_tab.build(app, demo))


def test_the_prompts_of_a_new_form_are_empty_text_that_suggestions_fill(panel):
    assert [prompt.value for prompt in panel.prompts] == ["", ""]


def test_suggested_prompts_follow_the_words_and_those_of_a_person_are_not_touched(app, panel):
    def suggest(trigger, before, *prompts):
        values = {field: field.value for field in panel.inputs}
        values |= {panel.images.trigger: trigger, panel.suggested: before}
        return train_panel._suggest_prompts(app, panel, values | dict(zip(panel.prompts, prompts, strict=True)))

    first = suggest("zwx", ["", ""], "", "")
    suggested = first[panel.suggested]
    assert [first[field] for field in panel.prompts] == suggested and all("zwx" in prompt for prompt in suggested)
    updates = suggest("abc", suggested, "my own", suggested[1])
    assert panel.prompts[0] not in updates
    assert updates[panel.prompts[1]] == updates[panel.suggested][1] and "abc" in updates[panel.prompts[1]]


@pytest.fixture
def fox(tmp_path):
    folder = tmp_path / "foxes"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (0, 40 * number, 90)).save(folder / f"{number}.png")
    project = Project(tmp_path, "fox")
    project.set_info(ProjectInfo("subject", "abc", "fox"))
    project.add(sorted(folder.iterdir()))
    return project


def test_another_project_is_another_concept_with_its_own_words(project, fox):
    config = configure(project, STYLE, "pocket", "Quick", ["zwx, a car"], {"train.steps": "40"}, [fox])
    style, subject = config.all_concepts
    assert (style.folder, style.trigger, style.kind, style.prior_weight) == (project.folder, "zwx", "style", 0)
    assert (subject.folder, subject.trigger, subject.class_name) == (fox.folder, "abc", "fox")
    assert subject.prior_weight == load_preset("pocket", "subject").prior.weight == 1
    assert describe_plan(config, 9).startswith("40 steps · zwx and abc have about the same share")
    usual = [load_preset("pocket", kind).train.steps for kind in ("style", "subject")]
    assert configure(project, STYLE, "pocket", "Balanced", [], {}, [fox]).train.steps == sum(usual)


def test_the_previews_show_a_picture_of_each_project():
    fox = ProjectInfo("subject", "abc", "fox")
    assert preview_prompts_of_all("pocket", [SUBJECT]) == ["a zwx fox on sand", "a fox on sand"]
    assert preview_prompts_of_all("pocket", [fox, SUBJECT]) == ["a abc fox on sand", "a zwx fox on sand"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (ProjectInfo("style", ""), "The project fox: Give a trigger word"),
        (ProjectInfo("subject", "abc", ""), "The project fox: Say on the tab Pictures what the subject is"),
        (ProjectInfo("style", "ZWX"), "concepts 1 and 2 have the same trigger, zwx"),
    ],
)
def test_a_project_that_cannot_stand_beside_another_is_named(project, fox, about, message):
    fox.set_info(about)
    with pytest.raises(SdloraError, match=message):
        configure(project, STYLE, "pocket", "Quick", [], {}, [fox])


def test_a_project_without_pictures_is_named(project, tmp_path):
    with pytest.raises(SdloraError, match="The project nobody: Add at least 3 pictures"):
        configure(project, STYLE, "pocket", "Quick", [], {}, [Project(tmp_path, "nobody")])
