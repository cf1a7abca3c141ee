"""The command ``sdlora evaluate``: what it prints, and how it ends."""

import json

import pytest

from sdlora.api.adapters import preferred_weight
from sdlora.cli.main import main
from sdlora.formats import write_adapter
from sdlora.storage.run_folder import Run
from tests.support.adapters import random_lora
from tests.support.tiny_models import write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP. Read only."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def run(configure, tmp_path):
    """A run with one checkpoint."""
    run = Run.create(tmp_path / "runs", "house", configure(sample__steps=1))
    state = random_lora(seed=2, ss_steps="4", ss_base_model_version="sd_v1")  # Nearer to the pictures than the base.
    write_adapter(state, run.checkpoint(4), format="kohya", dtype="fp32")
    return run


def evaluate(run, *arguments):
    return main(["evaluate", "house", "--data-dir", str(run.data_dir), *arguments])


def test_a_run_is_evaluated_and_what_is_proposed_is_used(run, clip, capsys):
    models = ("--encoder", clip, "--clip", clip, "--device", "cpu")
    small = (
        "--scales",
        "0.8",
        "--seeds",
        "1",
        "--prompts",
        "sks, a cat",
        "--unrelated-prompts",
        "a tree",
        "--steps",
        "1",
    )
    assert evaluate(run, *models, *small, "--use") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:3] == ["step", "scale", "look"] and lines[1].split()[:3] == ["*", "4", "0.8"]
    assert "We would take step 4 at scale 0.8" in printed.out
    sheet = next(line for line in lines if line.startswith("sheet: ")).removeprefix("sheet: ")
    assert sheet == str(run.folder / "evaluation" / "sheet.png")
    assert lines[-1] == f"adapter: {run.adapter}" and preferred_weight(run.adapter) == 0.8
    assert "generating images 30/30" in printed.err
    assert evaluate(run, *models, *small, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proposal"]["chosen"] == 0 and found["candidates"][0]["step"] == 4


def test_prompts_are_shown_without_generating_anything(run, capsys):
    assert evaluate(run, "--show-prompts", "--prompts", "sks, a cup") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["sks, a cup", "a cup"]
    assert not (run.folder / "evaluation").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(("--scales", "9"), 2, "scales"), (("--checkpoints", "7"), 2, "there is no checkpoint 7; there are: 4"),
     (("--encoder", "no such"), 2, "'no such': is no model that compares images"), (("--sead", "1"), 2, "--seed")],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_an_exit_code(run, capsys, arguments, code, message):
    assert evaluate(run, "--device", "cpu", *arguments) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_run_that_does_not_exist_is_named(run, capsys):
    assert main(["evaluate", "gone", "--data-dir", str(run.data_dir)]) == 2
    assert "there is no such run" in capsys.readouterr().err


@pytest.fixture
def files(tmp_path):
    """Two adapter files outside the data folder, whose metadata have a trigger and no base that is here."""
    paths = [tmp_path / "given" / f"{name}.safetensors" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        meta = {"modelspec.trigger_phrase": "sks", "ss_base_model_version": "sd_v1", "ss_sd_model_name": "elsewhere"}
        write_adapter(random_lora(**meta), path, format="kohya", dtype="fp32")
    return [str(path) for path in paths]


def evaluate_files(tmp_path, files, *arguments):
    return main(["evaluate", *files, "--data-dir", str(tmp_path / "data"), "--device", "cpu", *arguments])


SMALL = ("--scales", "1", "--seeds", "1", "--prompts", "sks, a cat", "--unrelated-prompts", "a tree", "--steps", "1")


def test_files_are_compared_as_checkpoints_are_and_the_result_is_found_again(
    tmp_path, files, clip, pictures, tiny_base, capsys
):
    models = ("--encoder", clip, "--clip", clip, "--base", str(tiny_base), "--images", str(pictures))
    assert evaluate_files(tmp_path, files, *models, *SMALL) == 0
    printed = capsys.readouterr()
    assert "We would take step" in printed.out and f"step 2: {files[1]}" in printed.out
    (folder,) = (tmp_path / "data" / "evaluations").iterdir()
    assert f"sheet: {folder / 'sheet.png'}" in printed.out and "generating images 45/45" in printed.err
    before = {path.name for path in (folder / "images").iterdir()}
    assert evaluate_files(tmp_path, files, *models, *SMALL, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["checkpoint"] for each in found["candidates"]] == ["first", "second"]
    assert {"look", "spill"} <= found["candidates"][0]["figures"].keys() and found["kind"] == "style"
    assert {path.name for path in (folder / "images").iterdir()} == before


def test_prompts_of_files_are_shown_with_the_trigger_of_their_metadata(tmp_path, files, tiny_base, capsys):
    assert evaluate_files(tmp_path, files, "--base", str(tiny_base), "--class-name", "cat", "--show-prompts") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all("sks" in line and "cat" in line for line in lines[:3]) and "sks" not in lines[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "names the base model 'elsewhere', which is not here; give --base"),
     (("--base", "pocket", "--use"), "--use: makes a checkpoint"),
     (("--base", "pocket", "--checkpoints", "2"), "checkpoints and concept are of a run"),
     (("--base", "pocket", "--kind", "photo"), "kind"),
     (("--base", "pocket", "--images", "/nowhere"), "/nowhere: does not exist")],
)  # fmt: skip
def test_what_files_do_not_tell_is_asked_for(tmp_path, files, capsys, arguments, message):
    assert evaluate_files(tmp_path, files, *arguments) in (2, 3)
    assert message in capsys.readouterr().err


def test_one_file_given_twice_and_what_is_no_adapter_are_refused(tmp_path, files, capsys):
    assert evaluate_files(tmp_path, [files[0], files[0]], "--base", "pocket") == 2
    assert "given twice" in capsys.readouterr().err
    (tmp_path / "given" / "broken.safetensors").write_bytes(b"junk")
    assert evaluate_files(tmp_path, [files[0], str(tmp_path / "given" / "broken.safetensors")]) != 0
    assert "broken.safetensors: is not a safetensors file" in capsys.readouterr().err


def test_a_run_has_its_own_words(run, capsys):
    assert evaluate(run, "--trigger", "ohwx") == 2
    assert "--trigger: is for adapter files; house is a run" in capsys.readouterr().err
