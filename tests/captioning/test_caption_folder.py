"""Captions of a folder: which are written, that nothing else is, and that all of it can be undone."""

import json

import pytest
from PIL import Image

from sdlora.captioning.caption_folder import caption_folder
from sdlora.captioning.captioner import caption_images
from sdlora.captioning.settings import CaptionSettings
from sdlora.data.caption_files import CaptionFiles
from sdlora.data.dataset import load_dataset
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from sdlora.events import Notice, Progress
from tests.support.captioners import SizeCaptioner


@pytest.fixture
def folder(tmp_path):
    """Five pictures: two without captions, one square, one with a caption, one captioned by a list."""
    folder = tmp_path / "set"
    (folder / "2_dog").mkdir(parents=True)
    for name, size in (("a.png", 100), ("b.png", 90), ("2_dog/c.png", 80), ("d.png", 64), ("e.png", 70)):
        Image.new("RGB", (size, 64), (size, 20, 20)).save(folder / name)
    (folder / "b.txt").write_text("mine")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "e.png", "text": "listed"}))
    return folder


def caption(folder, on_event=lambda event: None, **settings):
    return caption_folder(folder, CaptionSettings(**settings), SizeCaptioner, on_event)


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.rglob("*.txt"))}


def own(folder):
    return {example.path.name: example.own_caption for example in load_dataset(Data(folder=folder)).examples}


def test_by_default_only_pictures_without_a_caption_get_one(folder):
    report = caption(folder)
    assert texts(folder) == {"a.txt": "100 wide", "b.txt": "mine", "c.txt": "80 wide"}
    assert (report.images, report.written, report.kept, report.unsure) == (5, 2, 2, 1)
    assert str(report) == (
        "Captioned 2 pictures of 5. 2 have captions already, which stay. "
        "The model is not sure of 1 picture; caption them yourself."
    )
    assert caption(folder).written == 0


def test_new_words_go_behind_captions_wherever_those_come_from(folder):
    caption(folder, mode="append")
    assert own(folder) == {
        "a.png": "100 wide", "b.png": "mine, 90 wide", "c.png": "80 wide", "d.png": "", "e.png": "listed, 70 wide",
    }  # fmt: skip
    assert caption(folder, mode="append").written == 0


def test_a_replaced_caption_comes_back_in_one_step(folder):
    before = own(folder)
    assert caption(folder, mode="replace", batch_size=1).written == 4
    assert own(folder)["b.png"] == "90 wide"
    assert CaptionFiles(folder).undo() == "words of a model in 4 captions"
    assert own(folder) == before and texts(folder) == {"b.txt": "mine"}
    assert CaptionFiles(folder).undo() == ""


def test_what_was_written_before_a_failure_stays_and_can_be_undone(folder):
    class Failing(SizeCaptioner):
        def captions(self, images):
            if self.seen:
                raise MemoryError
            return super().captions(images)

    with pytest.raises(MemoryError):
        caption_folder(folder, CaptionSettings(batch_size=1, mode="replace"), Failing)
    assert len(texts(folder)) == 2
    CaptionFiles(folder).undo()
    assert texts(folder) == {"b.txt": "mine"}


def test_a_caption_that_is_typed_meanwhile_is_not_replaced(folder):
    class Slow(SizeCaptioner):
        def captions(self, images):
            (folder / "a.txt").write_text("typed")
            (folder / "2_dog" / "c.png").unlink()
            return super().captions(images)

    report = caption_folder(folder, CaptionSettings(), Slow)
    assert texts(folder) == {"a.txt": "typed", "b.txt": "mine"}
    assert report.written == 0


def test_a_captioner_may_see_all_pictures_before_it_writes(folder):
    class Surveying(SizeCaptioner):
        surveyed = ()

        def survey(self, batches):
            Surveying.surveyed = [[image.width for image in batch] for batch in batches]

        def captions(self, images):
            assert sorted(width for batch in Surveying.surveyed for width in batch) == [64, 70, 80, 90, 100]
            return super().captions(images)

    events = []
    report = caption_folder(folder, CaptionSettings(batch_size=2), Surveying, events.append)
    assert (report.written, report.kept) == (2, 2)
    counted = [
        (event.done, event.total) for event in events if getattr(event, "phase", "") == "looking at the pictures"
    ]
    assert counted[-1] == (5, 5)


def test_an_edit_after_it_survives_the_undo(folder):
    caption(folder)
    (folder / "a.txt").write_text("better")
    CaptionFiles(folder).undo()
    assert texts(folder) == {"a.txt": "better", "b.txt": "mine"}


def test_an_undo_meanwhile_begins_a_new_step(folder):
    class Undoing(SizeCaptioner):
        def captions(self, images):
            CaptionFiles(folder).undo()
            return super().captions(images)

    caption_folder(folder, CaptionSettings(batch_size=1), Undoing)
    assert texts(folder) == {"b.txt": "mine", "c.txt": "80 wide"}
    assert CaptionFiles(folder).undo() == "words of a model in 2 captions"
    assert texts(folder) == {"b.txt": "mine"}


def test_another_step_under_the_number_of_an_undone_one_is_left_alone(folder):
    files = CaptionFiles(folder)
    change = files.begin_change("mine")
    change.write([folder / "a.png"], lambda image, text: "one")
    files.undo()
    files.begin_change("yours").write([folder / "d.png"], lambda image, text: "two")
    change.write([folder / "a.png"], lambda image, text: "three")
    assert [files.undo(), files.undo()] == ["mine in 1 caption", "yours in 1 caption"]
    assert texts(folder) == {"b.txt": "mine"}


@pytest.mark.parametrize("name", ["a.txt", "a.caption"])
def test_what_cannot_be_read_is_named_and_never_replaced(folder, name):
    (folder / name).write_bytes("ä".encode("latin-1"))
    (folder / "broken.png").write_bytes(b"<html>")
    events = []
    report = caption(folder, events.append, mode="replace")
    assert (folder / name).read_bytes() == b"\xe4"
    assert {path.name for path in folder.glob("a.*")} == {"a.png", name}
    notice = next(event.message for event in events if isinstance(event, Notice))
    assert name in notice and "broken.png" in notice and len(report.problems) == 2


def test_no_model_is_loaded_where_there_is_nothing_to_do(folder):
    def load():
        raise AssertionError("loaded")

    (folder / "metadata.jsonl").unlink()
    for name in ("a", "d", "e", "2_dog/c"):
        (folder / f"{name}.txt").write_text("mine")
    assert caption_folder(folder, CaptionSettings(), load).kept == 5
    with pytest.raises(DatasetError, match="does not exist"):
        caption_folder(folder / "gone", CaptionSettings(), load)


def test_progress_counts_pictures_to_the_last(folder):
    events = []
    caption(folder, events.append, mode="replace", batch_size=2)
    counted = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.total]
    assert counted[0] == (0, 5) and counted[-1] == (5, 5)


def test_a_batch_has_as_many_pictures_as_asked_for():
    captioner, counted = SizeCaptioner(), []
    images = [Image.new("RGB", (40 + number, 40)) for number in range(1, 6)]
    found = caption_images(captioner, images, 2, lambda done, total: counted.append((done, total)))
    assert found == [f"{40 + number} wide" for number in range(1, 6)]
    assert captioner.seen == [2, 2, 1] and counted == [(2, 5), (4, 5), (5, 5)]


def test_two_captioners_at_once_write_each_caption_once(folder):
    """The second begins when the first has written one picture: it leaves that, and the first leaves the others."""
    reports = []

    class First(SizeCaptioner):
        def captions(self, images):
            if self.seen:
                reports.append(caption(folder, batch_size=1))
            return super().captions(images)

    first = caption_folder(folder, CaptionSettings(batch_size=1), First)
    assert reports[0].written + first.written == 2
    assert texts(folder) == {"a.txt": "100 wide", "b.txt": "mine", "c.txt": "80 wide"}


def test_a_caption_that_leads_out_of_the_folder_replaces_the_link_alone(folder, tmp_path):
    (tmp_path / "secret").write_text("theirs")
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    caption(folder, mode="replace")
    assert (tmp_path / "secret").read_text() == "theirs"
