"""The main job in a folder whose name has a space, letters of other scripts and a quote: nothing depends on names."""

import os
import shutil
import subprocess
import sys

import pytest

from sdlora import failpoints
from sdlora.config import TrainConfig
from sdlora.generation.infotext import read_parameters
from sdlora.storage.run_folder import Run
from tests.support.run_outcome import model_hash
from tests.support.training import train_in_process

ODD = "dir ü 空 '"


@pytest.fixture
def odd(configure, tiny_base, pictures, tmp_path):
    """Make that folder with a base, images, and a config that names both by relative paths."""
    folder = tmp_path / ODD
    shutil.copytree(tiny_base, folder / "base é")
    shutil.copytree(pictures, folder / "Bilder 空")
    for path in [*(folder / "Bilder 空").iterdir()]:
        path.rename(path.with_name(f"ü '{path.name}"))
    values = configure(sample__every=3, sample__prompts=["a red house"], sample__steps=1).model_dump(mode="json")
    values["model"]["base"], values["data"]["folder"] = str(folder / "base é"), str(folder / "Bilder 空")
    TrainConfig.model_validate(values).save(folder / "mein '空.toml")
    return folder


@pytest.mark.slow
def test_a_run_is_killed_goes_on_is_exported_and_drawn_with_in_an_odd_folder(fork_server, odd, tmp_path):
    def command(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "sdlora.cli.main", *arguments], cwd=odd, env={**os.environ, **environment},
            capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip

    data_dir = ["--data-dir", "Daten ü"]
    ended = command("train", "mein '空.toml", *data_dir, **{failpoints.VARIABLE: "state.renamed:2"})
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "error: the run mein-空 was cut off (exit code 137); continue with: sdlora resume mein-空"
    )
    ended = command("resume", "mein-空", *data_dir)
    run = Run(odd / "Daten ü" / "runs" / "mein-空")
    assert (ended.returncode, ended.stdout) == (0, f"adapter: {run.adapter}\n"), ended.stderr

    def at_once(*arguments):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        code = fork_server.start("sdlora.cli.main", [*arguments, "--data-dir", str(run.data_dir)], log).wait()
        assert code == 0, log.read_text()
        return log.read_text()

    exported, picture = odd / "für ComfyUI '.safetensors", odd / "空 bild.png"
    at_once("export", "mein-空", "--output", str(exported))
    at_once(
        "generate", "--base", str(odd / "base é"), "--adapter", f"{exported}:0.8", "--prompt", "a red house 空 '",
        "--seed", "1", "--steps", "1", "--output", str(picture), "--device", "cpu",
    )  # fmt: skip
    parameters = read_parameters(picture)
    assert parameters.prompt.startswith("a red house 空 '")
    _, _, plain = train_in_process(run.config, tmp_path / "plain")
    assert model_hash(run.adapter) == model_hash(plain.adapter)
    assert run.sample(6, 0).read_bytes() == plain.sample(6, 0).read_bytes()
    assert model_hash(run.adapter) == model_hash(exported)
