"""The command ``sdlora caption``: what it writes, what it prints, and how it ends."""

import pytest

from sdlora.cli.main import main
from sdlora.data.captions import read_caption
from sdlora.events import Event, Finished, Progress, Result
from tools.pocket.captioned import drawings
from tools.pocket.painters import PAINTERS


@pytest.fixture
def folder(tmp_path):
    """Three flat drawings of pocket's world, the last with a caption."""
    contents, images = drawings(PAINTERS["flat"], 3, 7000)
    folder = tmp_path / "set"
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    (folder / "2.txt").write_text("mine")
    return folder, contents


def caption(folder, *arguments):
    return main(["caption", str(folder), "--data-dir", str(folder.parent / "data"), *arguments])


def test_a_folder_is_captioned_and_that_is_undone(folder, capsys):
    folder, contents = folder
    assert caption(folder, "--threshold", "0", "--trigger", "ohwx") == 0
    written = [read_caption(folder / f"{number}.txt") for number in range(3)]
    assert written[2] == "mine"
    for text, (_, colour, place) in zip(written[:2], contents, strict=False):
        assert text.startswith("ohwx, a") and f" {colour} " in text and text.endswith(place)
    printed = capsys.readouterr()
    assert printed.out == "Captioned 2 pictures of 3. 1 has a caption already, which stays.\n"
    assert "captioning 2/2" in printed.err
    assert caption(folder, "--undo") == 0
    assert capsys.readouterr().out == "Undone: words of a model in 2 captions.\n"
    assert sorted(path.name for path in folder.glob("*.txt")) == ["2.txt"]
    assert caption(folder, "--undo") == 0
    assert capsys.readouterr().out == "There is nothing to undo.\n"


def test_programs_read_events(folder, capsys):
    folder, _ = folder
    assert caption(folder, "--json", "--threshold", "0", "--mode", "replace") == 0
    events = [Event.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(events[0], Progress) and isinstance(events[-1], Finished)
    (result,) = (event.value for event in events if isinstance(event, Result))
    assert result == {"images": 3, "written": 3, "kept": 0, "unsure": 0, "problems": []}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(("--threshold", "2"), 2, "threshold = '2'"), (("--mode", "all"), 2, "--mode"), (("--device", "tpu"), 2, "tpu"),
     (("--base", "some/base"), 2, "take Salesforce/blip-image-captioning-large"),
     (("--model", "no such"), 2, "'no such': is no captioner"),
     (("--model", "some/captioner"), 2, "HF_HUB_OFFLINE is set and nothing is cached")],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_an_exit_code(folder, capsys, arguments, code, message):
    folder, _ = folder
    assert caption(folder, *arguments) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert sorted(path.name for path in folder.glob("*.txt")) == ["2.txt"]


def test_a_folder_without_pictures_is_wrong_data(tmp_path, capsys):
    assert caption(tmp_path / "gone") == 3
    (tmp_path / "empty").mkdir()
    assert caption(tmp_path / "empty") == 3
    assert "no .png or .jpg" in capsys.readouterr().err
