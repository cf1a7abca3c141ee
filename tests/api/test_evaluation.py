"""Taking what an evaluation proposes: the checkpoint and its scale become the run's adapter."""

import json
import os
import time

import pytest

from sdlora.api import evaluation as api
from sdlora.api.adapters import checkpoint_in_use, preferred_weight, use_checkpoint
from sdlora.errors import BusyError, ConfigError
from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.proposal import Proposal
from sdlora.evaluation.report import FOLDER, SHEET, write_evaluation
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.storage.run_folder import Run
from tests.support.tiny_models import write_tiny_adapter


@pytest.fixture
def run(configure, tmp_path):
    """A finished run with checkpoints 2 and 4."""
    run = Run.create(tmp_path / "runs", "house", configure())
    header = {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "sks", "modelspec.title": "house"}
    for step in (2, 4):
        write_tiny_adapter(run.checkpoint(step), ss_steps=str(step), **header)
    write_tiny_adapter(run.adapter, ss_steps="4", **header)
    return run


def evaluation(proposal):
    candidates = tuple(
        Candidate(f"checkpoints/{step:06d}.safetensors", step, 0.8, {"look": Figure(0.5, 0.4, 0.6, 0.5)})
        for step in (2, 4)
    )
    prompts = api.EvaluationPrompts(("sks, a cat",))
    return api.Evaluation("house", "style", "pocket", "pocket", "pocket", prompts, 1, candidates, proposal, {})


def test_the_proposal_becomes_the_adapter_with_its_scale_as_preferred_weight(run):
    write_evaluation(evaluation(Proposal(chosen=0)), run.folder / FOLDER)
    assert api.use_proposal(run) == run.adapter
    assert checkpoint_in_use(run) == 2 and preferred_weight(run.adapter) == 0.8
    card = json.loads(run.adapter.with_suffix(".json").read_text())
    assert card["preferred weight"] == 0.8 and card["activation text"] == "sks" and card["sd version"] == "SD1"
    assert read_metadata(run.adapter)["modelspec.title"] == "house"
    assert read_metadata(run.checkpoint(2)).get("modelspec.lora_default_weight") is None  # Checkpoints stay.


def test_a_checkpoint_without_a_scale_is_copied_byte_for_byte(run):
    use_checkpoint(run, 2)
    assert run.adapter.read_bytes() == run.checkpoint(2).read_bytes()


def test_without_a_proposal_or_an_evaluation_nothing_is_changed(run):
    before = run.adapter.read_bytes()
    with pytest.raises(ConfigError, match="sdlora evaluate"):
        api.use_proposal(run)
    write_evaluation(evaluation(Proposal()), run.folder / FOLDER)
    with pytest.raises(ConfigError, match="proposes no checkpoint"):
        api.use_proposal(run)
    assert run.adapter.read_bytes() == before and api.evaluation_sheet(run) is None


def test_a_checkpoint_that_was_deleted_since_is_named(run):
    write_evaluation(evaluation(Proposal(chosen=0)), run.folder / FOLDER)
    run.checkpoint(2).unlink()
    with pytest.raises(ConfigError, match="there is no checkpoint 2; there are: 4"):
        api.use_proposal(run)


def test_a_run_that_trains_keeps_its_adapter(run):
    write_evaluation(evaluation(Proposal(chosen=0)), run.folder / FOLDER)
    with run.hold(), pytest.raises(BusyError, match="is training"):
        api.use_proposal(run)


def test_prompts_can_be_seen_and_edited_before(run):
    proposed = api.evaluation_prompts(run)
    assert len(proposed.triggered) == 3 and all(text.startswith("sks, ") for text in proposed.triggered)
    edited = api.evaluation_prompts(run, api.EvaluationSettings(prompts=("sks, a cup",)))
    assert edited.triggered == ("sks, a cup",) and edited.of_class == ("a cup",)


def test_a_job_is_refused_before_it_starts(run):
    with pytest.raises(ConfigError, match="there is no checkpoint 3; there are: 2, 4"):
        api.evaluation_job(run, api.EvaluationSettings(checkpoints=(3,)))


def test_a_sheet_that_is_a_link_is_not_shown(run, tmp_path):
    (run.folder / FOLDER).mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (run.folder / FOLDER / SHEET).symlink_to(tmp_path / "secret.png")
    assert api.evaluation_sheet(run) is None


def test_another_candidate_is_taken_by_its_number(run):
    write_evaluation(evaluation(Proposal(chosen=0)), run.folder / FOLDER)
    api.use_proposal(run, 1)
    assert checkpoint_in_use(run) == 4 and preferred_weight(run.adapter) == 0.8
    for number in (-1, 2):
        with pytest.raises(ConfigError, match=f"candidate {number}: the evaluation has 0 to 1"):
            api.use_proposal(run, number)


def test_an_evaluation_that_does_not_fit_the_checkpoints_says_so(run):
    write_evaluation(evaluation(Proposal(chosen=0)), run.folder / FOLDER)
    for path in run.checkpoint_files().values():
        os.utime(path, (1, 1))
    write_tiny_adapter(run.checkpoint(3))
    os.utime(run.checkpoint(3), (1, 1))  # Left out on purpose.
    assert api.outdated_evaluation(run) == []
    later = time.time() + 60
    run.checkpoint(2).unlink()
    os.utime(run.checkpoint(4), (later, later))
    for step in (6, 8):
        os.utime(write_tiny_adapter(run.checkpoint(step)), (later, later))
    assert api.outdated_evaluation(run) == [
        "checkpoint 2 gone since", "checkpoint 4 changed since", "checkpoints 6, 8 saved since",
    ]  # fmt: skip
