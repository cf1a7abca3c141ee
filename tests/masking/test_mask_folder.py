"""Masks of a folder: which are written, that nothing else is, and that all of it can be undone."""

import pytest
from PIL import Image

from sdlora.data.dataset import load_dataset
from sdlora.data.images import open_mask
from sdlora.data.mask_files import MaskFiles
from sdlora.data.settings import Data
from sdlora.data.undo_log import UndoLog
from sdlora.errors import DatasetError, FileError
from sdlora.events import Notice, Progress
from sdlora.masking.mask_folder import mask_folder
from sdlora.masking.settings import MaskSettings
from tests.support.tiny_segmenters import BrightSegmenter

PLAIN = {"grow": 0.0, "feather": 0.0, "threshold": 0.5}
"""Settings by which a mask is what the segmenter found."""


@pytest.fixture
def folder(tmp_path):
    """A bright square in each of three pictures, one of which has a mask; a dark picture, and a bright one."""
    folder = tmp_path / "set"
    (folder / "2_dog").mkdir(parents=True)
    for name in ("a.png", "2_dog/b.png", "masked.png"):
        image = Image.new("RGB", (80, 60), (20, 20, 20))
        image.paste((240, 240, 240), (20, 10, 50, 40))
        image.save(folder / name)
    Image.new("L", (80, 60)).save(folder / "masked.mask.png")
    own = open_mask(folder / "masked.mask.png")
    own.paste(255, (0, 0, 40, 60))
    own.save(folder / "masked.mask.png")
    for name, level in (("dark.png", 20), ("bright.png", 250)):
        Image.new("RGB", (80, 60), (level, level, level)).save(folder / name)
    return folder


def mask(folder, on_event=lambda event: None, segmenter=BrightSegmenter, **settings):
    return mask_folder(folder, MaskSettings(**{**PLAIN, **settings}), segmenter, on_event)


def masks(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.mask.png")) if ".history" not in path.parts}


def undo(folder):
    return UndoLog(folder).undo_newest(lambda step: None)


def test_by_default_only_pictures_without_a_mask_get_one(folder):
    before = masks(folder)
    report = mask(folder)
    assert masks(folder).keys() == {"a.mask.png", "b.mask.png", "masked.mask.png"}
    assert masks(folder)["masked.mask.png"] == before["masked.mask.png"]
    assert open_mask(folder / "a.mask.png").getbbox() == (20, 10, 50, 40)
    assert (report.images, report.written, report.kept, report.whole) == (5, 2, 1, 1)
    assert report.nothing == ["dark.png"]
    assert str(report) == (
        "Masked 2 pictures of 5. 1 has a mask already, which stays. Everything counts in 1 picture, which gets no "
        "mask. Nothing was found in 1 picture (dark.png); paint a mask yourself."
    )
    assert {example.path.name for example in load_dataset(Data(folder=folder)).examples if example.mask} == {
        "a.png", "b.png", "masked.png",
    }  # fmt: skip


def test_a_replaced_mask_comes_back_in_one_step(folder):
    before = masks(folder)
    assert mask(folder, mode="replace", batch_size=1).written == 3
    assert open_mask(folder / "masked.mask.png").getbbox() == (20, 10, 50, 40)
    assert undo(folder).what == "masks of 3 pictures"
    assert masks(folder) == before
    assert undo(folder) is None


def test_replaced_masks_of_one_name_in_two_folders_all_come_back(folder):
    (folder / "2_dog" / "b.png").rename(folder / "2_dog" / "masked.png")
    other = folder / "2_dog" / "masked.mask.png"
    other.write_bytes((folder / "masked.mask.png").read_bytes())
    before = {path: path.read_bytes() for path in (folder / "masked.mask.png", other)}
    assert mask(folder, mode="replace").written == 3
    assert all(path.read_bytes() != content for path, content in before.items())
    while undo(folder):
        pass
    assert {path: path.read_bytes() for path in before} == before


def test_masks_of_other_tools_count_as_masks_and_stay(folder):
    (folder / "masked.mask.png").rename(folder / "a-masklabel.png")
    assert mask(folder).kept == 1
    mask(folder, mode="replace")
    assert (folder / "a-masklabel.png").exists()
    assert load_dataset(Data(folder=folder)).examples[0].mask == folder / "a.mask.png"


def test_what_was_written_before_a_failure_stays_and_can_be_undone(folder):
    class Failing(BrightSegmenter):
        def probabilities(self, images):
            if self.seen:
                raise MemoryError
            return super().probabilities(images)

    before = masks(folder)
    with pytest.raises(MemoryError):
        mask(folder, segmenter=Failing, batch_size=1)
    assert len(masks(folder)) == 2
    undo(folder)
    assert masks(folder) == before


def test_what_is_painted_or_removed_meanwhile_is_left_alone(folder):
    class Slow(BrightSegmenter):
        def probabilities(self, images):
            found = super().probabilities(images)
            (folder / "2_dog" / "b.png").unlink()
            painted = Image.new("L", (80, 60))
            painted.paste(255, (0, 0, 10, 10))
            MaskFiles(folder, UndoLog(folder)).write(folder / "a.png", painted)
            return found

    assert mask(folder, segmenter=Slow).written == 0
    assert open_mask(folder / "a.mask.png").getbbox() == (0, 0, 10, 10)
    assert not (folder / "2_dog" / "b.mask.png").exists()


def test_pictures_that_go_before_they_are_looked_at_are_named(folder):
    def load():
        (folder / "a.png").unlink()
        return BrightSegmenter()

    events = []
    report = mask_folder(folder, MaskSettings(**PLAIN), load, events.append)
    assert report.written == 1 and "a.png" in report.problems[0]
    assert any("a.png" in event.message for event in events if isinstance(event, Notice))


def test_a_mask_that_is_black_throughout_is_named_and_replaced_only_if_asked(folder):
    Image.new("L", (80, 60)).save(folder / "a.mask.png")
    assert "a.mask.png: is black throughout" in mask(folder).problems[0]
    assert open_mask(folder / "a.mask.png").getbbox() is None
    report = mask(folder, mode="replace")
    assert report.problems == [] and open_mask(folder / "a.mask.png").getbbox() == (20, 10, 50, 40)


def test_a_link_in_place_of_a_mask_is_left_alone(folder, tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    (folder / "a.mask.png").symlink_to(tmp_path / "theirs")
    report = mask(folder, mode="replace")
    assert report.written == 2 and (tmp_path / "theirs").read_bytes() == b"theirs"
    assert any("a.mask.png" in line for line in report.problems)


def test_a_folder_in_which_nothing_can_be_written_is_named_and_stays_as_it_was(folder):
    (folder / ".history").write_text("a file where the undo log's folder belongs, which refuses root, too")
    before = masks(folder)
    with pytest.raises(FileError, match="set"):
        mask(folder)
    assert masks(folder) == before


def test_no_model_is_loaded_where_there_is_nothing_to_do(folder):
    def load():
        raise AssertionError("loaded")

    for name in ("a", "dark", "bright", "2_dog/b"):
        (folder / f"{name}.mask.png").write_bytes((folder / "masked.mask.png").read_bytes())
    assert mask(folder, segmenter=load).kept == 5
    with pytest.raises(DatasetError, match="does not exist"):
        mask(folder / "gone", segmenter=load)


def test_progress_counts_pictures_to_the_last(folder):
    events = []
    mask(folder, events.append, batch_size=3)
    counted = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.total]
    assert counted[0] == (0, 4) and counted[-1] == (4, 4)
