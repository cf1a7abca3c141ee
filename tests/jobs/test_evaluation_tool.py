"""The job that evaluates a run: what it writes, what it reuses, and how it ends. On a tiny random base."""

import os
import shutil

import pytest
from PIL import Image

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError, DatasetError, FileError, SdloraError
from sdlora.evaluation.report import FILE, FOLDER, IMAGES, SHEET, read_evaluation
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.events import Progress
from sdlora.generation.device import choose_device
from sdlora.jobs import evaluation_tool
from sdlora.jobs.evaluation_tool import evaluate
from sdlora.jobs.tool_process import EvaluationJob
from sdlora.storage.run_folder import Run
from tests.support.tiny_models import write_tiny_clip
from tests.support.training import events_of, train_in_process


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP. Read only."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def trained(tiny_base, pictures, tmp_path_factory):
    """A run's folder: six steps with three checkpoints, on two pictures. Read only."""
    folder = tmp_path_factory.mktemp("two")
    for path in sorted(pictures.iterdir()):
        if path.stem in {image.stem for image in sorted(pictures.glob("*.png"))[:2]}:
            shutil.copy(path, folder)
    values = {
        "model.base": str(tiny_base), "data.folder": str(folder), "data.trigger": "sks", "train.steps": 6,
        "train.learning_rate": 1e-2, "train.device": "cpu", "checkpoint.every": 2, "sample.every": 0,
    }  # fmt: skip
    config = TrainConfig.parse({"adapter": {"rank": 4}}, "test", values)
    _, _, output = train_in_process(config, tmp_path_factory.mktemp("data") / "runs" / "house")
    config.save(output.config_file)
    return output.folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, in a data folder of its own."""
    return Run(shutil.copytree(trained, tmp_path / "data" / "runs" / "house"))


@pytest.fixture
def settings(clip):
    """Two checkpoints at two scales, two prompts of one seed and an unrelated one: (1 + 2 x 2) x 3 images.

    At scale 1, and of the base, two captions from three seeds besides.
    """
    return {
        "checkpoints": [2, 6], "scales": [0.5, 1.0], "prompts": ["sks, a cat"], "unrelated_prompts": ["a red house"],
        "seeds": 1, "steps": 2, "encoder": clip, "clip": clip, "device": "cpu",
    }  # fmt: skip


CAPTIONED = 2 * 3
IMAGES_OF_SETTINGS = 15 + 3 * CAPTIONED


def work(run, settings):
    """Evaluate in this process; return the evaluation and the events."""
    events = []
    evaluate({"run": str(run.folder), "settings": settings, "data_dir": str(run.data_dir)}, events.append)
    return read_evaluation(run.folder / FOLDER), events


def drawn(run):
    """Names of the images, with the time at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run.folder / FOLDER / IMAGES).iterdir()}


def generated(events):
    """Number of images that were there when the job began, and at its end."""
    told = [event for event in events_of(Progress, events) if event.phase == "generating images"]
    return told[0].done, told[-1].done


def test_each_checkpoint_is_measured_at_each_scale_beside_the_base(run, settings):
    found, events = work(run, settings)
    assert [(each.step, each.scale) for each in found.candidates] == [(2, 0.5), (2, 1.0), (6, 0.5), (6, 1.0)]
    assert found.prompts.of_class == ("a cat",) and found.name == "house"
    for each in found.candidates:
        captioned = {"copies"} if each.scale == 1 else set()
        assert {"look", "prompts", "spill", "drift", "nearest"} | captioned == set(each.figures)
        assert all(figure.base is not None for figure in each.figures.values())
        assert each.nearest.endswith(".png") and each.copied.endswith(".png") == (each.scale == 1)
    assert len(drawn(run)) == IMAGES_OF_SETTINGS and generated(events) == (0, IMAGES_OF_SETTINGS)
    with Image.open(run.folder / FOLDER / SHEET) as sheet:
        assert sheet.width > 4 * 144 and sheet.height > 5 * 144  # Three prompts and the nearest; base and four.
    assert (run.folder / found.candidates[0].checkpoint).is_file()


def test_a_finished_evaluation_is_repeated_without_generating_anything(run, settings):
    work(run, settings)
    before, text = drawn(run), (run.folder / FOLDER / FILE).read_text()
    _, events = work(run, settings)
    assert drawn(run) == before and (run.folder / FOLDER / FILE).read_text() == text
    assert generated(events) == (IMAGES_OF_SETTINGS, IMAGES_OF_SETTINGS)


def test_a_damaged_image_is_generated_again_and_gives_the_same_result(run, settings):
    work(run, settings)
    text, folder = (run.folder / FOLDER / FILE).read_text(), run.folder / FOLDER / IMAGES
    first, second, *_ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[:100])
    Image.new("RGB", (8, 8)).save(second)
    (folder / ".tmp-0123").write_bytes(b"cut off")
    _, events = work(run, settings)
    assert (run.folder / FOLDER / FILE).read_text() == text
    assert generated(events) == (IMAGES_OF_SETTINGS - 2, IMAGES_OF_SETTINGS) and not (folder / ".tmp-0123").exists()


def test_another_scale_and_prompt_reuse_what_they_have_in_common(run, settings):
    work(run, settings)
    before = drawn(run)
    _, events = work(
        run, {**settings, "scales": [1.0], "prompts": ["sks, a cat", "sks, a dog"], "class_prompts": ["a cat"]}
    )
    # Of three prompts and the captions; the dog is new to all three.
    assert generated(events) == (9 + 3 * CAPTIONED, 12 + 3 * CAPTIONED)
    assert before.items() <= drawn(run).items()


def test_an_adapter_that_changed_is_generated_anew(run, settings):
    work(run, settings)
    files = run.checkpoint_files()
    files[2].write_bytes(files[6].read_bytes())
    found, events = work(run, settings)
    assert generated(events)[0] == IMAGES_OF_SETTINGS  # Its images are those of the other one, which are there.
    assert found.candidates[0].figures == found.candidates[2].figures
    files[6].write_bytes(files[4].read_bytes())
    _, events = work(run, settings)
    assert generated(events) == (IMAGES_OF_SETTINGS - 6 - CAPTIONED, IMAGES_OF_SETTINGS)


def test_a_setting_of_the_images_gives_others(run, settings):
    work(run, settings)
    _, events = work(run, {**settings, "steps": 3})
    assert generated(events) == (0, IMAGES_OF_SETTINGS)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_job_that_is_killed_goes_on_where_it_ended(run, settings):
    """Killed when it reports its third image, then started again; beside a run that was never killed."""
    whole, _ = work(run, settings)
    text = (run.folder / FOLDER / FILE).read_text()
    for path in (run.folder / FOLDER / IMAGES).iterdir():
        path.unlink()
    (run.folder / FOLDER / FILE).unlink()
    job = EvaluationJob(run.folder, EvaluationSettings.checked(**settings), run.data_dir)
    for event in job:
        if isinstance(event, Progress) and event.phase == "generating images" and event.done >= 3:
            break  # Leaving the loop kills it.
    kept = drawn(run)
    assert 3 <= len(kept) <= IMAGES_OF_SETTINGS and not (run.folder / FOLDER / FILE).exists()
    found, _ = work(run, settings)
    assert found == whole and (run.folder / FOLDER / FILE).read_text() == text
    assert {name: when for name, when in drawn(run).items() if name in kept and not name.startswith(".")} == {
        name: when for name, when in kept.items() if not name.startswith(".")
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"checkpoints": [3]}, ConfigError, "there is no checkpoint 3; there are: 2, 4, 6"),
     ({"concept": 2}, ConfigError, "concept = 2: the run has 1")],
)  # fmt: skip
def test_what_a_run_does_not_have_is_named(run, settings, changes, error, message):
    with pytest.raises(error, match=message):
        work(run, {**settings, **changes})


def test_a_run_without_checkpoints_says_so(run, settings):
    for path in run.checkpoint_files().values():
        path.unlink()
    with pytest.raises(ConfigError, match="has saved no checkpoints yet"):
        work(run, settings)


def test_training_images_that_are_gone_are_one_sentence(run, settings, tmp_path):
    TrainConfig.load(run.config_file, {"data.folder": str(tmp_path / "gone")}).save(run.config_file)
    with pytest.raises(DatasetError):
        work(run, settings)


def test_a_checkpoint_deleted_while_the_job_waits_is_one_sentence(run, settings, monkeypatch):
    path = run.checkpoint(6)
    monkeypatch.setattr(
        evaluation_tool, "choose_device", lambda name: path.unlink(missing_ok=True) or choose_device(name)
    )
    with pytest.raises(FileError, match=r"000006.safetensors: cannot be read"):
        work(run, settings)
    assert not (run.folder / FOLDER / FILE).exists()


def test_a_checkpoint_that_cannot_be_loaded_is_told_before_anything_is_generated(run, settings):
    run.checkpoint_files()[max(run.checkpoint_files())].write_bytes(b"no adapter")
    with pytest.raises(SdloraError):
        work(run, settings)
    assert not list((run.folder / FOLDER / IMAGES).glob("*.png"))


@pytest.mark.parametrize("inside", [FOLDER, f"{FOLDER}/{IMAGES}"])
def test_nothing_is_written_through_a_link_out_of_the_run(run, settings, tmp_path, inside):
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.folder / inside).parent.mkdir(exist_ok=True)
    (run.folder / inside).symlink_to(outside)
    with pytest.raises(FileError, match="is a link out of"):
        work(run, settings)
    assert not list(outside.iterdir())
