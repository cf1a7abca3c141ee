"""Choosing a checkpoint on the page and by endpoints: the plan, the job, its result, and taking a candidate."""

import time

import gradio as gr
import pytest

from sdlora.api.adapters import checkpoint_in_use, preferred_weight
from sdlora.api.evaluation import EvaluationPrompts, read_evaluation
from sdlora.errors import BusyError, ConfigError
from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.proposal import Alarm, Proposal
from sdlora.evaluation.report import FOLDER, Evaluation, write_evaluation
from sdlora.formats import write_adapter
from sdlora.storage.run_folder import Run
from sdlora.ui import evaluation_html, evaluation_panel
from sdlora.ui.evaluated import EvaluatedRun
from sdlora.ui.evaluation_endpoints import EvaluationEndpoints
from sdlora.ui.listeners import Changes
from tests.support.adapters import random_lora
from tests.support.tiny_models import write_tiny_adapter, write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP. Read only."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def run(app, configure):
    """A run with checkpoints 2 and 4."""
    run = Run.create(app.data_dir / "runs", "house", configure(sample__steps=1))
    state = random_lora(seed=2, ss_steps="4", ss_base_model_version="sd_v1")  # Nearer to the pictures than the base.
    for step in (2, 4):
        write_adapter(state, run.checkpoint(step), format="kohya", dtype="fp32")
    app.refresh()
    return run


@pytest.fixture
def panel(app):
    with gr.Blocks():
        return evaluation_panel.build(app, gr.Dropdown([]))


@pytest.fixture
def values(panel):
    fields = {component: component.value for component in panel.fields.values()}
    return {**fields, panel.name: "house", panel.filled: {}, panel.is_open: False}


def planned(app, panel, values, **changed):
    """Return what the page holds after the plan was shown with some fields changed."""
    values = values | {panel.fields[name]: value for name, value in changed.items()}
    updates = evaluation_panel._plan(app, panel, True, values)
    return values | {key: value for key, value in updates.items() if not isinstance(value, dict) or key is panel.filled}


def text(panel, values, name):
    return values[panel.fields[name]]


def test_the_plan_has_the_proposed_prompts_and_the_number_of_pictures(app, run, panel, values):
    shown = planned(app, panel, values, concept=1)
    assert "134 pictures: 2 checkpoints at 3 scales, beside the base; the time shows once" in shown[panel.plan]
    assert len(text(panel, shown, "prompts").splitlines()) == 3 and "sks" in text(panel, shown, "prompts")
    assert "sks" not in text(panel, shown, "class_prompts") and text(panel, shown, "unrelated_prompts")
    settings = evaluation_panel.settings_of(app, panel, "house", shown)
    assert (settings.prompts, settings.class_prompts, settings.unrelated_prompts) == ((), (), ())
    assert settings.scales == (0.6, 0.8, 1.0) and settings.checkpoints == ()


def test_edited_prompts_are_kept_and_those_without_the_trigger_follow(app, run, panel, values):
    shown = planned(app, panel, values, concept=1)
    shown = planned(app, panel, shown, prompts="sks, a cat\n\nsks, a dog", scales="0.5,1", checkpoints="4")
    assert text(panel, shown, "class_prompts") == "a cat\na dog"
    assert "1 checkpoint at 2 scales" in shown[panel.plan]
    settings = evaluation_panel.settings_of(app, panel, "house", shown)
    assert settings.prompts == ("sks, a cat", "sks, a dog") and settings.class_prompts == ()
    shown = planned(app, panel, shown, class_prompts="a cow")
    assert evaluation_panel.settings_of(app, panel, "house", shown).class_prompts == ("a cow",)
    assert evaluation_panel.settings_of(app, panel, "other", shown).prompts == ()  # Those of another run.


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"scales": "9"}, "scales"), ({"scales": "big"}, "scales"), ({"checkpoints": "7"}, "there is no checkpoint 7"),
     ({"seeds": 99}, "seeds = 99")],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_plan(app, run, panel, values, changed, message):
    shown = planned(app, panel, values, concept=1)
    shown = planned(app, panel, shown, **changed)
    assert message in shown[panel.plan] and "class='note bad'" in shown[panel.plan]
    updates = evaluation_panel._start(app, panel, shown)
    assert message in updates[panel.status] and app.evaluations.of(EvaluatedRun(run, app.queue)) is None


def test_a_run_that_trains_or_is_gone_is_not_evaluated(app, run, panel, values):
    with run.hold():
        assert evaluation_panel._plan(app, panel, True, values) == {panel.is_open: True}
        assert "is queued or trained" in evaluation_panel._start(app, panel, values)[panel.status]
    assert "This run is gone" in evaluation_panel._start(app, panel, values | {panel.name: "x"})[panel.status]


def test_the_plan_says_which_models_judge_and_what_is_downloaded(app, run, panel, values, clip):
    shown = planned(app, panel, values, concept=1)
    download = "it is not on this machine yet and will be downloaded first."
    assert f"Judged by openai/clip-vit-large-patch14; {download}" in shown[panel.plan]
    shown = planned(app, panel, shown, encoder=clip, clip="pocket")
    assert f"Judged by {clip}, and with prompts by the bundled CLIP." in shown[panel.plan]
    settings = evaluation_panel.settings_of(app, panel, "house", shown)
    assert (settings.encoder, settings.clip) == (clip, "pocket")
    assert evaluation_panel.settings_of(app, panel, "other", shown).encoder == ""
    shown = planned(app, panel, shown, encoder="<i>")
    assert "is no model that compares images" in shown[panel.plan] and "<i>" not in shown[panel.plan]


def ended(app, run):
    """The evaluation of ``run``, when it has ended."""
    for _ in range(1200):
        if (found := app.evaluations.of(EvaluatedRun(run, app.queue))).state != "running":
            return found
        time.sleep(0.1)
    raise AssertionError(found.progress)


def test_a_job_goes_on_without_its_visitor_and_its_result_is_taken(app, run, panel, clip):
    ends = EvaluationEndpoints(app)
    assert ends.evaluation("house") | {"run": ""} == {
        "run": "", "state": "none", "phase": "", "done": 0, "total": 0, "seconds_left": None, "message": "",
        "result": None, "outdated": [], "sheet": None,
    }  # fmt: skip
    small = {"scales": [0.8], "seeds": 1, "steps": 1, "prompts": ["sks, a cat"], "unrelated_prompts": ["a tree"]}
    started = ends.evaluate("house", encoder=clip, clip=clip, **small)
    assert started == {
        "run": "house", "images": 45, "seconds": None, "prompts": ["sks, a cat", "a cat", "a tree"],
    }  # fmt: skip
    with pytest.raises(BusyError, match="is being evaluated already"):
        ends.evaluate("house", encoder=clip, clip=clip)
    shown = evaluation_panel._poll(app, panel, "house")
    assert "note info" in shown[panel.status] and panel.result not in shown
    assert ended(app, run).state == "finished"
    found = ends.evaluation("house", sheet=True)
    assert found["state"] == "finished" and (found["done"], found["total"]) == (2, 2)  # Of the last phase.
    assert [each["step"] for each in found["result"]["candidates"]] == [2, 4]
    assert found["sheet"]["path"].endswith("sheet.png")
    proposed = read_evaluation(run).proposal.chosen
    shown = evaluation_panel._poll(app, panel, "house")
    assert shown[panel.status] == "" and "We would take step" in shown[panel.result]
    assert shown[panel.candidate]["choices"][0][1] == proposed and shown[panel.use]["visible"]
    step = read_evaluation(run).candidates[proposed].step
    assert f"house now uses step {step}, scale 0.8" in evaluation_panel.take(app, "house", proposed)
    assert ends.use_proposal("house") == {"run": "house", "step": step, "scale": 0.8}
    assert checkpoint_in_use(run) is not None and preferred_weight(run.adapter) == 0.8


def test_a_cancelled_job_says_that_its_pictures_are_kept(app, run, panel, clip):
    EvaluationEndpoints(app).evaluate("house", encoder=clip, clip=clip)
    evaluation_panel._cancel(app, panel, "house")
    status = EvaluationEndpoints(app).evaluation("house")
    assert status["state"] == "stopped" and "pictures made so far are kept" in status["message"]
    assert "kept" in evaluation_panel._poll(app, panel, "house")[panel.status]
    with pytest.raises(ConfigError, match="no evaluation of it runs"):
        EvaluationEndpoints(app).stop_evaluation("house")


EVIL = "<img src=x onerror=alert(1)>"


def stored(run, chosen=0):
    """An evaluation whose every word is hostile."""
    candidates = tuple(
        Candidate(f"{step:06d}.safetensors", step, 0.6, {"look": Figure(0.5, 0.25, 0.75, 0.5)}, EVIL, EVIL)
        for step in (2, 4)
    )
    proposal = Proposal(chosen, (0, 1), (EVIL, "Second reason."), (Alarm("spill", EVIL, "Set prior.weight = 1."),))
    prompts = EvaluationPrompts((EVIL,))
    write_evaluation(Evaluation(EVIL, "style", EVIL, EVIL, EVIL, prompts, 1, candidates, proposal, {}),
                     run.folder / FOLDER)  # fmt: skip


def test_an_earlier_result_is_shown_with_what_is_outdated_and_no_script(app, run, panel):
    stored(run)
    changes = Changes({})
    evaluation_panel.refresh(app, panel, EvaluatedRun(run, app.queue), True, changes)
    shown = changes.updates[panel.result]
    assert "<img" not in shown and "Second reason." in shown and "Set prior.weight = 1." in shown
    assert "0.50<small>0.50 | 0.25</small>" in shown and "older than the run" not in shown
    assert changes.updates[panel.candidate]["choices"] == [
        ("step 2, scale 0.6 (proposed)", 0), ("step 4, scale 0.6", 1),
    ]  # fmt: skip
    again = Changes(changes.seen)
    evaluation_panel.refresh(app, panel, EvaluatedRun(run, app.queue), True, again)
    assert again.updates == {}
    run.checkpoint(2).unlink()
    evaluation_panel.refresh(app, panel, EvaluatedRun(run, app.queue), True, again)
    assert "older than the run: checkpoint 2 gone since. Evaluate again." in again.updates[panel.result]
    assert "there is no checkpoint 2" in evaluation_panel.take(app, "house", 0)


def test_a_damaged_result_is_one_sentence_and_nothing_can_be_taken(app, run, panel):
    stored(run)
    (run.folder / FOLDER / "evaluation.json").write_text("{}")
    shown = evaluation_panel._result(panel, EvaluatedRun(run, app.queue))
    assert "is no evaluation" in shown[panel.result] and shown[panel.use]["visible"] is False
    stored(run, chosen=None)
    assert "candidate" in evaluation_panel.take(app, "house", 9)


def test_the_run_of_another_name_has_no_result_of_this_one(app, run, panel):
    stored(run)
    other = Run.create(app.data_dir / "runs", "other", run.config)
    write_tiny_adapter(other.checkpoint(2))
    shown = evaluation_panel._result(panel, EvaluatedRun(other, app.queue))
    assert (
        shown[panel.result] == "" and evaluation_html.progress(app.evaluations.of(EvaluatedRun(other, app.queue))) == ""
    )
