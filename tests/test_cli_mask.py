"""The command ``sdlora mask``: what it writes, what it prints, and how it ends."""

import numpy as np
import pytest
import torch

from sdlora.cli.main import main
from sdlora.data.images import open_image, open_mask
from sdlora.events import Event, Finished, Progress, Result
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import load_segmenter
from tests.support.images import noise_image
from tests.support.tiny_segmenters import write_tiny_clipseg


@pytest.fixture
def folder(tmp_path):
    """Three pictures, the last with a mask."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        noise_image(60, 40, seed=number).save(folder / f"{number}.png")
    mask = open_mask(folder / "2.png").point(lambda level: 255 * (level > 100))
    mask.save(folder / "2.mask.png")
    return folder


@pytest.fixture
def model(tmp_path):
    return write_tiny_clipseg(tmp_path / "clipseg")


def mask(folder, *arguments):
    return main(["mask", str(folder), "--data-dir", str(folder.parent / "data"), *arguments])


def middling(folder, model):
    """A threshold that about half of each picture reaches, for these words."""
    segmenter = load_segmenter(MaskSettings(model=str(model), words="a dog"), torch.device("cpu"))
    found = segmenter.probabilities([open_image(folder / f"{number}.png").rgb for number in range(3)])
    return f"{np.median([np.asarray(each) for each in found]) / 255:.3f}"


def test_a_folder_is_masked_and_that_is_undone(folder, model, capsys):
    own = (folder / "2.mask.png").read_bytes()
    arguments = ("--model", str(model), "--words", "a dog", "--threshold", middling(folder, model))
    assert mask(folder, *arguments, "--grow", "0", "--feather", "0") == 0
    printed = capsys.readouterr()
    assert printed.out == "Masked 2 pictures of 3. 1 has a mask already, which stays.\n"
    assert "masking 2/2" in printed.err
    assert (folder / "2.mask.png").read_bytes() == own
    for number in range(2):
        found = open_mask(folder / f"{number}.mask.png")
        assert found.size == (60, 40) and found.getextrema() == (0, 255)
    assert mask(folder, "--undo") == 0
    assert capsys.readouterr().out == "Undone: masks of 2 pictures.\n"
    assert [path.name for path in folder.glob("*.mask.png")] == ["2.mask.png"]
    assert mask(folder, "--undo") == 0
    assert capsys.readouterr().out == "There is nothing to undo.\n"


def test_programs_read_events(folder, model, capsys):
    threshold = middling(folder, model)
    assert mask(folder, "--json", "--model", str(model), "--class-name", "dog", "--threshold", threshold) == 0
    events = [Event.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(events[0], Progress) and isinstance(events[-1], Finished)
    (result,) = (event.value for event in events if isinstance(event, Result))
    assert result == {"images": 3, "written": 2, "kept": 1, "whole": 0, "nothing": [], "problems": []}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [((), 2, "words is empty, and so is class_name; say what a CLIPSeg is to look for, such as `a dog`"),
     (("--threshold", "2"), 2, "threshold = '2'"), (("--mode", "append"), 2, "--mode"),
     (("--model", "no such"), 2, "'no such': is no segmenter"),
     (("--model", "gone.onnx"), 2, "'gone.onnx': is no segmenter"),
     (("--words", "a dog"), 2, "CIDAS/clipseg-rd64-refined: HF_HUB_OFFLINE is set and nothing is cached")],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_an_exit_code(folder, capsys, arguments, code, message):
    assert mask(folder, *arguments) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert [path.name for path in folder.glob("*.mask.png")] == ["2.mask.png"]


def test_a_folder_without_pictures_is_wrong_data(tmp_path, capsys):
    assert mask(tmp_path / "gone", "--words", "a dog") == 3
    (tmp_path / "empty").mkdir()
    assert mask(tmp_path / "empty", "--words", "a dog") == 3
    assert "no .png or .jpg" in capsys.readouterr().err
