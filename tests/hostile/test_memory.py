"""All bombs in one process of their own: none of them is unpacked, so memory hardly rises, and time does not either."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import hostile_files
from tests.support.images import noise_image

LIMIT = 300e6
"""Bytes by which resident memory may rise: the promise for a picture bomb, here for all of them together."""
SECONDS = 120
"""A bomb that is unpacked takes many minutes; this is no measure of speed."""
BOMBS = {
    "set/picture.png": hostile_files.picture_bomb,
    "set/text.png": hostile_files.text_bomb,
    "bomb.zip": hostile_files.zip_bomb,
    "header.safetensors": hostile_files.header_bomb,
    "large.safetensors": hostile_files.large_header,
    "deep.safetensors": lambda path: path.write_bytes(hostile_files.framed(b"[" * 8_000_000)),
    "deep.toml": hostile_files.deep_toml,
    "dotted.toml": hostile_files.dotted_toml,
    "long.toml": lambda path: path.write_text(f"data.folder = '{'x' * 2_000_000}'"),
    "model/model_index.json": hostile_files.deep_json,
    "models/large/model_index.json": lambda path: path.write_text(f"[{'[],' * 10_000_000}0]"),
}
HANDLE = """
import json, sys
from pathlib import Path
from sdlora.cli.main import main
from sdlora.config import TrainConfig
from sdlora.data.images import open_image
from sdlora.data.projects import Project
from sdlora.errors import SdloraError
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formats.header_summary import read_header_summary
from sdlora.api.models import available_models
from sdlora.api.training import prepare_run
import sdlora.data.dataset, sdlora.families.detect

def peak():  # Of this program alone: ru_maxrss counts what its parent had when it was started.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))

root, said = Path(sys.argv[1]), {}
good = TrainConfig.load("pocket-style", {"data.folder": root / "good"})
sdlora.data.dataset.load_dataset(good.data)  # What is loaded for good files counts not.
before = peak()

def refused(name, handle):
    try:
        handle()
    except SdloraError as error:
        said[name] = str(error)

bad = TrainConfig.load("pocket-style", {"data.folder": root / "set"})
refused("set", lambda: prepare_run(bad, "x", root / "data"))
refused("cover", lambda: open_image(root / "set" / "picture.png"))  # As an adapter's header may hold one.
added = Project(root / "data", "mine").add([*(root / "set").iterdir(), root / "bomb.zip"])
said["zip"] = " ".join(added.remarks)
for path in sorted(root.glob("*.safetensors")):
    refused(path.name, lambda: read_safetensors_header(path))
    refused(f"card {path.name}", lambda: read_header_summary(path))
for path in sorted(root.glob("*.toml")):
    refused(path.name, lambda: TrainConfig.load(path))
refused("model", lambda: sdlora.families.detect.detect_folder(root / "model"))
said["models"] = " ".join(model.problem for model in available_models(root))
print(json.dumps({"rise": peak() - before, "said": said}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_all_bombs_together_are_refused_in_little_memory(tmp_path: Path) -> None:
    for name, make in BOMBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make(tmp_path / name)
    (tmp_path / "good").mkdir()
    noise_image().save(tmp_path / "good" / "a.png")
    command = [sys.executable, "-c", HANDLE, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    message = found["said"]
    assert found["rise"] < LIMIT, found["rise"]
    expected = {
        "set": "picture.png: has 13000 x 13000 pixels; over 67 million it is not opened", "zip": "times its size",
        "cover": "pixels; over 67 million it is not opened",
        "header.safetensors": "its header is no JSON object", "large.safetensors": "its header of 64.0 MiB is over",
        "deep.safetensors": "its header is no JSON", "deep.toml": "nested too deeply",
        "dotted.toml": "nested too deeply", "long.toml": "over 1.00 MiB", "model": "model_index.json: is no JSON",
        "models": "has 28.6 MiB, too much for what it should say",
    }  # fmt: skip
    for name, reason in expected.items():
        assert reason in message[name], (name, message[name])
    assert "text.png: has over a megabyte of text beside its pixels" in message["set"]
