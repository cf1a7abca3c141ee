"""The command line: exit codes, one sentence an error, every setting a flag."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sdlora.cli.main import main
from sdlora.cli.options import split_scale
from sdlora.cli.progress import TerminalProgress
from sdlora.config import TrainConfig, all_settings
from sdlora.events import RunStarted, StepDone
from sdlora.filesystem.locks import hold_lock
from sdlora.formats.storage import DTYPES, WRITTEN
from sdlora.generation.infotext import read_parameters
from sdlora.storage.device_lock import device_lock

LONG, NOBODY, NUL = "a" * 300, "~nobody-of-this-name/x", "a\0b"
ODD = (LONG, NOBODY, NUL)
"""Names that no file can have."""
GENERATE = ["generate", "--prompt", "x"]


def printed(capsys):
    output = capsys.readouterr()
    return output.out + output.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "COMMAND"),
        (["trian"], 2, "invalid choice"),
        (["train"], 2, "PRESET-OR-TOML"),
        (["train", "pocket-stile"], 2, "did you mean pocket-style"),
        (["train", "pocket-style", "--train.steps", "0"], 2, "train.steps"),
        (["train", "pocket-style", "--adapter.rank", "-1"], 2, "adapter.rank"),
        (["train", "pocket-style", "--adapter.rnak", "3"], 2, "did you mean --adapter.rank"),
        (["train", "pocket-style", "--train.learning_rate", "nan"], 2, "train.learning_rate"),
        (["resume", "nothing"], 2, "no such run"),
        (["generate", "--prompt", "x", "--output", "a.jpg"], 2, "PNG"),
        (["generate", "--base", "pockt", "--prompt", "x", "--output", "a.png"], 2, "did you mean pocket"),
        (["generate", "--base", "a.ckpt", "--prompt", "x", "--output", "a.png"], 2, "safetensors"),
        ([*GENERATE, "--output", "a.png", "--prediction-type", "flow"], 2, "--prediction-type: invalid choice"),
        ([*GENERATE, "--output", "a.png", "--predicton-type", "epsilon"], 2, "did you mean --prediction-type"),
        ([*GENERATE, "--output", "a.png", "--device", "cpu", "--offload", "model"], 2, "is on the CPU already"),
        ([*GENERATE, "--output", "a.png", "--attention", "xformers"], 2, "xformers: needs xformers"),
        (["compare", "nothing", "--output", "a.png", "--vae-tiling", "often"], 2, "--vae-tiling: invalid choice"),
        (["bake", "--adapter", "x", "--output", "m", "--offload", "model"], 2, "there is no flag --offload"),
        (["export", "nothing", "--output", "a.safetensors"], 2, "no such run"),
        (["export", "nothing", "--format", "zip", "--output", "a.safetensors"], 2, "invalid choice"),
        (["train", f"{LONG}.toml"], 2, "no such TOML file or preset"),
        (["train", f"{NOBODY}.toml"], 2, "no such TOML file or preset"),
        (["train", f"{NUL}.toml"], 2, "no such TOML file or preset"),
        *((["resume", name], 2, "no such run") for name in ODD),
        *((["export", name, "--output", "a.safetensors"], 2, "no such run") for name in ODD),
        *((["export", "x", "--output", f"{name}.safetensors"], 5, "cannot be a file's name") for name in ODD),
        *(([*GENERATE, "--base", name, "--output", "a.png"], 2, "model.base: there is no") for name in ODD),
        *(([*GENERATE, "--adapter", name, "--output", "a.png"], 2, "no such run") for name in ODD),
        *(([*GENERATE, "--output", f"{name}.png"], 5, "cannot be a file's name") for name in ODD),
        *(([*GENERATE, "--output", f"new/{name}/a.png"], 5, "cannot be a file's name") for name in (LONG, NUL)),
        *((["runs", "--data-dir", name], 5, "cannot be a file's name") for name in ODD),
    ],
)
def test_a_mistake_gets_its_exit_code_and_one_sentence(arguments, code, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    text = printed(capsys)
    assert sentence in text
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prepare", [[], ["--prepare"]], ids=["train", "prepare"])
@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--data.folder", "nowhere"], 3, "nowhere: does not exist"),
        *((["--data.folder", name], 3, "does not exist; point data.folder at") for name in ODD),
        (["--data.folder", "."], 3, "no .png or .jpg among 0 files"),
        (["--model.base", "pockt"], 2, "did you mean pocket"),
        *((["--model.base", name], 2, "model.base: there is no") for name in ODD),
        (["--train.precision", "fp16", "--train.device", "cpu"], 2, "fp16 does not work on a CPU"),
        (["--train.precision", "fp16", "--train.device", "cpu:0"], 2, "fp16 does not work on a CPU"),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(flags, code, sentence, prepare, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "pocket-style", *prepare, "--data-dir", "data", *flags]) == code
    text = printed(capsys)
    assert text.startswith("error: ") and sentence in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [(b"", 3, "safetensors"), (b"\x80\x04junk junk", 3, "safetensors"), (None, 5, "there is no such file")],
)
def test_inspect_refuses_what_is_no_adapter(content, code, reason, capsys, tmp_path):
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == code
    assert reason in printed(capsys)


def test_a_folder_that_cannot_be_written_is_told_before_the_base_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    output = str(tmp_path / "new" / "a.png")
    assert main(["generate", "--base", "pockt", "--prompt", "x", "--output", output]) == 5
    assert f"{tmp_path}: cannot be written" in printed(capsys)


def test_a_picture_waits_for_a_held_device_and_says_so(configure, tmp_path, capsys, monkeypatch):
    lock = hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device")
    monkeypatch.setattr(TerminalProgress, "say", lambda terminal, text: print(text, lock.release()))
    command = [*GENERATE, "--base", str(configure().model.base), "--steps", "1", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "a.png"), "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("waiting for cpu: a training")
    assert (tmp_path / "a.png").is_file()
    hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device").release()


@pytest.mark.parametrize(("stop", "left"), [("never", "  50 s left"), ("plateau", "  at most 50 s left")])
def test_a_run_that_may_stop_early_takes_at_most_what_its_steps_take(stop, left):
    out = io.StringIO()
    terminal = TerminalProgress("mine", out)
    size = {"modules": 1, "parameters": 1, "share": 0.1}
    terminal(RunStarted(step=0, steps=6, device="cpu", precision="fp32", base="x", images=6, stop=stop, **size))
    terminal(StepDone(step=1, steps=6, loss=0.5, learning_rate=1e-3, seconds=10.0, left=50.0))
    assert out.getvalue().splitlines()[-1] == f"step 1/6  loss 0.5000{left}"


def test_every_setting_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = printed(capsys)
    assert [setting.name for setting in all_settings() if f"--{setting.name} " not in text] == []


def test_flags_reach_the_run(tmp_path, capsys, pictures):
    flags = ["--data.folder", str(pictures), "--data.flip", "--adapter.rank", "8", "--sample.prompts", "a", "b c"]
    flags += ["--adapter.alpha", "none", "--train.learning_rate", "3e-4"]
    assert main(["train", "pocket-style", "--prepare", "--name", "mine", "--data-dir", str(tmp_path), *flags]) == 0
    folder = tmp_path / "runs" / "mine"
    assert printed(capsys).strip() == str(folder)
    config = TrainConfig.load(folder / "config.toml")
    assert config.data.folder == pictures
    assert (config.data.flip, config.adapter.rank, config.adapter.alpha) == (True, 8, None)
    assert (config.sample.prompts, config.train.learning_rate) == (("a", "b c"), 3e-4)


def test_export_offers_every_format_and_number_type(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = printed(capsys)
    assert f"--format {{{','.join(WRITTEN)}}}" in text
    assert f"--dtype {{{','.join(DTYPES)}}}" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("a:-1", ("a", -1.0)),
        (r"C:\a.safetensors", (r"C:\a.safetensors", 1.0)),
        (r"C:\a.safetensors:0.5", (r"C:\a.safetensors", 0.5)),
    ],
)
def test_an_adapter_argument_may_end_in_a_scale(text, parts):
    assert split_scale(text) == parts


def test_help_needs_none_of_the_large_libraries():
    code = "import sys; from sdlora.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'diffusers', 'pydantic', 'gradio') if m in sys.modules])"
    begun = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - begun < 20  # a hang, not a speed: speeds are benchmarked, not tested


def test_train_resume_export_inspect_and_generate_from_the_command_line(configure, tmp_path, capsys):
    """The main job, through the commands alone, on the tiny base."""
    configure(sample__every=0).save(tmp_path / "mine.toml")
    data_dir = ["--data-dir", str(tmp_path / "data")]
    assert main(["train", str(tmp_path / "mine.toml"), "--name", "mine", *data_dir]) == 0
    output = capsys.readouterr()
    adapter = tmp_path / "data" / "runs" / "mine" / "adapter.safetensors"
    assert output.out.splitlines()[-1] == f"adapter: {adapter}"
    assert "step 6/6" in output.err
    assert "% of all)" in output.err
    assert main(["runs", *data_dir]) == 0
    assert "finished" in printed(capsys)
    for format in ("kohya", "diffusers"):
        exported = tmp_path / f"{format}.safetensors"
        assert main(["export", "mine", "--format", format, "--output", str(exported), *data_dir]) == 0
        assert main(["inspect", str(exported)]) == 0
        rows = [line.split() for line in printed(capsys).splitlines() if line.startswith("format:")]
        assert rows == [["format:", format], ["format:", "pt"]]  # the second is the file's metadata
    base = str(configure().model.base)
    picture = tmp_path / "out.png"
    command = ["generate", "--base", base, "--adapter", f"{adapter}:0.8", "--prompt", "a red house", "--seed", "1"]
    assert main([*command, "--steps", "2", "--count", "2", "--output", str(picture), *data_dir]) == 0
    assert capsys.readouterr().out.split() == [str(picture), str(tmp_path / "out-2.png")]
    early, late = (adapter.parent / "checkpoints" / f"{step:06d}.safetensors" for step in (2, 4))
    shutil.copy(early, tmp_path / early.name)
    adapters = ["--adapter", str(early), "--adapter", str(late), "--adapter", str(tmp_path / early.name)]
    again = [*command, *adapters, "--adapter", str(early), "--steps", "1", "--output", str(tmp_path / "mixed.png")]
    assert main([*again, *data_dir]) == 0
    parameters = read_parameters(tmp_path / "mixed.png").settings["Lora hashes"]
    assert [name.split(":")[0].strip() for name in parameters.split(",")] == [
        "mine", "mine-000002", "mine-000004", "000002", "mine-000002-5",
    ]  # fmt: skip
    assert main(["export", "mine", "--output", str(tmp_path / "kohya.safetensors"), *data_dir]) == 2
    assert "exists already" in printed(capsys)


def test_a_plan_that_is_ended_by_a_signal_ends_as_by_an_error(monkeypatch, capsys):
    """End the process that measures for the estimate: nothing else would."""
    ended = []

    def plan(*given):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            ended.append(True)

    monkeypatch.setattr("sdlora.api.training.plan_run", plan)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(["plan", "pocket-style"])
    assert caught.value.code == 143 and ended == [True]
    assert signal.getsignal(signal.SIGTERM) == before
