"""`sdlora train` as a person uses it: stopped by Ctrl-C, resumed, given pictures as cameras and editors save them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from PIL import Image
from safetensors import safe_open

from sdlora.checkpoint import newest_state
from sdlora.cli.main import main
from sdlora.events import RunStarted, RunStopped, StepDone
from sdlora.storage.run_folder import Run
from tests.support.images import PHOTO_FOLDER, PHOTO_SETS
from tests.support.training import events_of


def notes(capsys):
    """Return the run's notices from the output of the command."""
    return [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def interrupted(run, *arguments):
    """The command's exit code and what it printed, if Ctrl-C is pressed once a step of its own is done."""
    before = len(run.events())
    command = [sys.executable, "-m", "sdlora.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not events_of(StepDone, run.events()[before:]):
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_control_c_saves_and_a_resume_goes_on_from_there(configure, tmp_path):
    configure(train__steps=1000, train__batch_size=1, checkpoint__every=0).save(tmp_path / "mine.toml")
    data_dir = ["--data-dir", str(tmp_path / "data")]
    run = Run(tmp_path / "data" / "runs" / "mine")
    code, output = interrupted(run, "train", str(tmp_path / "mine.toml"), "--name", "mine", *data_dir)
    assert code == 130, output
    first = len(run.events())
    stopped = run.events()[-1]
    assert isinstance(stopped, RunStopped), output
    assert f"stopped at step {stopped.step} and saved; continue with: sdlora resume mine" in output
    assert "Traceback" not in output
    assert stopped.step == len(events_of(StepDone, run.events())) > 0
    assert newest_state(run.states).step == stopped.step
    assert run.checkpoint(stopped.step).is_file() and not run.adapter.exists()
    code, output = interrupted(run, "resume", "mine", *data_dir)
    assert code == 130, output
    assert [event.step for event in events_of(RunStarted, run.events()[first:])] == [stopped.step]
    steps = [event.step for event in events_of(StepDone, run.events())]
    assert steps == [*range(1, run.events()[-1].step + 1)]  # none twice, none left out
    assert len(steps) > stopped.step


def test_a_run_that_stops_early_says_so_and_goes_on_if_told_never_to(configure, tmp_path, capsys):
    settings = {"train__stop": "plateau", "train__stop_patience": 2, "train__learning_rate": 1e-7, "monitor__every": 1}
    configure(**settings).save(tmp_path / "mine.toml")
    data_dir = ["--data-dir", str(tmp_path / "data")]
    assert main(["train", str(tmp_path / "mine.toml"), "--name", "mine", *data_dir]) == 0
    output = capsys.readouterr()
    assert "\nStopped early at step 2 of 6: the loss on trained pictures was 1.000 of the base's" in output.err
    assert "adapter: " in output.out
    run = Run(tmp_path / "data" / "runs" / "mine")
    assert run.state == "finished" and run.adapter.is_file()
    assert main(["resume", "mine", "--train.stop", "never", *data_dir]) == 0
    assert run.events()[-1].step == 6 and not run.stopped_early


def test_a_turned_photograph_and_a_cut_out_train_with_honest_remarks(configure, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 90 x 151, shown 151 x 90
    Image.linear_gradient("L").resize((90, 151)).convert("RGB").save(folder / "phone.jpg", exif=turned)
    cut_out = Image.new("RGBA", (51, 50), (200, 30, 30, 0))
    cut_out.paste((30, 90, 200, 255), (10, 10, 40, 40))
    cut_out.save(folder / "logo.png")
    configure(data__folder=str(folder), train__steps=2, train__batch_size=1).save(tmp_path / "mine.toml")
    code = main(["train", str(tmp_path / "mine.toml"), "--name", "mine", "--data-dir", str(tmp_path / "data")])
    assert code == 0
    assert notes(capsys) == [
        "Only 2 pictures: the adapter will copy rather than learn; add at least 3, better ten.",
        "Smaller than the training size of 64 pixels: 1 picture (logo.png); the shortest side has 50. They are "
        "enlarged, and the adapter learns their blur; use larger copies if there are any.",
    ]
    with safe_open(tmp_path / "data" / "runs" / "mine" / "adapter.safetensors", "pt") as file:
        shapes = [bucket["resolution"] for bucket in json.loads(file.metadata()["ss_bucket_info"])["buckets"].values()]
    assert [64, 64] in shapes
    (wide,) = (shape for shape in shapes if shape != [64, 64])
    assert 1.5 < wide[0] / wide[1] < 1.9  # 151 : 90 is 1.68, upright


@pytest.mark.slow
@pytest.mark.parametrize("folder", PHOTO_SETS or [PHOTO_FOLDER], ids=lambda path: path.name)
def test_photographs_train_without_a_remark(folder, configure, tmp_path, capsys):
    if not PHOTO_SETS:
        pytest.skip(f"no photographs at {PHOTO_FOLDER}: set SDLORA_PHOTOS to a folder of folders of them")
    config = configure(data__folder=str(folder), data__class_name="thing", train__steps=2, train__batch_size=1)
    config.save(tmp_path / "mine.toml")
    code = main(["train", str(tmp_path / "mine.toml"), "--name", "mine", "--data-dir", str(tmp_path / "data")])
    assert code == 0
    assert notes(capsys) == []
    with safe_open(tmp_path / "data" / "runs" / "mine" / "adapter.safetensors", "pt") as file:
        pictures = [path for path in folder.iterdir() if path.suffix == ".jpg"]
        assert file.metadata()["ss_num_train_images"] == str(len(pictures))
        assert json.loads(file.metadata()["ss_tag_frequency"]) == {folder.name: {"sks thing": len(pictures)}}
