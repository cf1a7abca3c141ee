"""A journal that was torn, by a crash, a full disk or a power cut: what is in it counts, and what comes after too."""

import errno
import os

import pytest

from sdlora.errors import FileError
from sdlora.events import Event, Notice, RunFinished
from sdlora.storage.journal import Journal, read_events, tail_events
from sdlora.storage.run_folder import Run
from sdlora.ui.run_view import RunView

TORN = {
    "half a line": b'{"kind": "Notice", "time": 1.0, "mess',
    "half a letter": '{"kind": "Notice", "message": "ü'.encode()[:-1],
    "zeros, as after a power cut": b"\0" * 512,
    "nothing but its end missing": Notice(message="whole", time=1.0).to_json().encode(),
    "another program's": b"hello",
}


@pytest.mark.parametrize("piece", TORN.values(), ids=TORN)
def test_what_follows_a_torn_line_is_read_and_what_went_before(tmp_path, piece):
    before, after = Notice(message="before ü"), [Notice(message="after 空"), Notice(message="and on")]
    path = tmp_path / "journal.jsonl"
    Journal(path)(before)
    path.write_bytes(path.read_bytes() + piece)
    seen, place = zip(*tail_events(path), strict=True)  # A viewer that looks now leaves the torn line for later.
    assert seen == (before,)
    journal = Journal(path)
    for event in after:
        journal(event)
    whole = [Event.from_json(piece.decode())] if piece == TORN["nothing but its end missing"] else []
    assert list(read_events(path)) == [before, *whole, *after]
    assert list(read_events(path, place[-1])) == [*whole, *after]


def test_a_page_that_watches_a_torn_journal_shows_what_follows(tmp_path):
    run = Run(tmp_path)
    view = RunView(run)
    journal = Journal(run.journal)
    journal(Notice(message="one"))
    with open(run.journal, "ab") as file:
        file.write(TORN["half a letter"])
    assert view.refresh().notices == ["one"]
    journal = Journal(run.journal)
    journal(Notice(message="two"))
    assert view.refresh().notices == ["one", "two"]
    journal(RunFinished(step=6, adapter="adapter.safetensors", seconds=2.0))
    assert view.refresh().seconds == 2.0


class Filling:
    """A file on a disk with room for so many bytes more: it takes a part of what it is given, then refuses."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_that_a_full_disk_cut_short_is_told_and_swallows_no_other(tmp_path, room):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal(Notice(message="one"))
    whole = journal._file
    journal._file = Filling(whole, room)
    with pytest.raises(FileError, match=r"journal\.jsonl: cannot be written \(No space left on device\); mend that"):
        journal(Notice(message="two"))
    journal._file = whole
    journal(Notice(message="three"))
    assert [event.message for event in read_events(path)] == ["one", "three"]
