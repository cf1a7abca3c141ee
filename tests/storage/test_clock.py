"""A clock that is set: back or forward by a day, or by ten years, while things are made, listed, kept and deleted."""

import os
import time
from pathlib import Path

import pytest

from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.events import Progress, RunStarted, StepDone
from sdlora.filesystem.locks import is_held
from sdlora.filesystem.stat_cache import StatCache
from sdlora.generation import xyz_grid
from sdlora.generation.axes import parse_axis
from sdlora.generation.xyz_grid import GridCell, ImageGrid, grid_cells, write_declaration
from sdlora.inference.device_requests import DeviceRequests
from sdlora.inference.generation_request import GenerationRequest
from sdlora.jobs import training_queue
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage.disk_usage import disk_usage, free_space
from sdlora.storage.gallery import newest_images
from sdlora.storage.journal import Journal
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from sdlora.time_left import TimeLeft
from sdlora.ui import library_html
from sdlora.ui.login import TRIES, Throttle
from sdlora.ui.run_view import RunView
from tests.support.images import noise_image
from tests.support.tiny_models import write_tiny_adapter

DAY, DECADE = 86_400.0, 3_652 * 86_400.0
JUMPS = [-DAY, DAY, -DECADE, DECADE]


class Clock:
    """The clock of the wall, for programs and for the files that they make: it can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.offset = 0.0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(self.offset * 1e9))

    def set(self, jump: float) -> None:
        self.offset += jump

    def stamp(self, *paths: Path) -> None:
        """Give files the time that they would have now."""
        for path in paths:
            os.utime(path, (time.time(),) * 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("jump", JUMPS)
def test_what_is_made_now_is_listed_first_whatever_the_clock_was(tmp_path, clock, configure, jump):
    """Made while the clock was wrong, then again when it is right, or the other way around."""
    for number, name in enumerate(("before", "after")):
        clock.set(jump if number else 0.0)
        run = Run.create(tmp_path / "runs", name, configure())
        project = Project(tmp_path, name)
        project.set_info(ProjectInfo())
        image, adapter = tmp_path / "creations" / f"{number}.png", tmp_path / "adapters" / f"{name}.safetensors"
        image.parent.mkdir(exist_ok=True)
        noise_image().save(image)
        write_tiny_adapter(adapter)
        clock.stamp(run.config_file, project.info_file, image, adapter)
    assert [run.name for run in Run.all(tmp_path)] == ["after", "before"]
    assert [project.name for project in list_projects(tmp_path)] == ["after", "before"]
    assert [path.name for path in newest_images(tmp_path / "creations")] == ["1.png", "0.png"]
    assert [entry.name for entry in Library(tmp_path).adapters()] == ["after", "before"]


def deleted(library: Library, name: str = "a") -> str:
    write_tiny_adapter(library.folder / f"{name}.safetensors")
    return library.delete_adapter(name).folder.name


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_is_wrong_for_an_hour_takes_nothing_out_of_the_trash(tmp_path, clock, jump):
    library = Library(tmp_path)
    item = deleted(library)
    clock.set(jump)
    assert library.trash.forget_old() == 0
    wrongly_timed = deleted(library, "b")
    clock.set(3600.0 - jump)
    assert library.trash.forget_old() == 0
    for name in (item, wrongly_timed):
        library.undo(name)
    assert sorted(entry.name for entry in library.adapters()) == ["a", "b"]


def test_what_stays_old_for_a_day_is_forgotten_at_the_second_look(tmp_path, clock):
    library = Library(tmp_path)
    deleted(library)
    clock.set(29 * DAY)
    assert library.trash.forget_old() == 0
    clock.set(1.5 * DAY)
    assert library.trash.forget_old() == 0
    (mark,) = library.trash.folder.glob("*/expired")
    clock.stamp(mark)
    clock.set(0.9 * DAY)
    assert library.trash.forget_old() == 0
    clock.set(0.2 * DAY)
    assert library.trash.forget_old() == 1


def test_what_was_deleted_in_the_future_can_be_restored_freed_and_emptied(tmp_path, clock):
    library = Library(tmp_path)
    clock.set(DECADE)
    first, _, _ = (deleted(library, name) for name in "abc")
    clock.set(-DECADE)
    library.undo(first)
    usage = {each.name: each for each in disk_usage(tmp_path)}
    assert len(usage["trash"].paths) == 2
    assert library.trash.empty() == 2
    cached = tmp_path / "cache" / "latents" / "x"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x" * 99)
    os.utime(cached, (time.time() + DAY,) * 2)
    assert free_space(tmp_path, ["cache"]) == 99


@pytest.mark.parametrize("jump", JUMPS)
def test_the_queue_keeps_its_order(tmp_path, clock, configure, jump, monkeypatch):
    queue = TrainingQueue(tmp_path)
    for name in "abc":
        queue.add(Run.create(tmp_path / "runs", name, configure()))
        clock.set(jump)
    assert [run.name for run in queue.waiting()] == ["a", "b", "c"]
    queue.move(queue.waiting()[2], "first")
    assert [run.name for run in queue.waiting()] == ["c", "a", "b"]


def test_an_entry_of_the_queue_of_any_number_leaves_room_behind_it(tmp_path, configure):
    queue = TrainingQueue(tmp_path)
    first = Run.create(tmp_path / "runs", "a", configure())
    for number in ("9" * 4300, "-5", str(10**30)):
        first.queued_file.write_text(number)
        queue.add(run := Run.create(tmp_path / "runs", "b", configure()))
        assert {each.name for each in queue.waiting()} >= {"a", run.name}
        queue.move(run, "up")
        queue.cancel(run)
    assert training_queue._since(first) <= training_queue.LAST_NS


@pytest.mark.parametrize("jump", JUMPS)
def test_requests_of_images_are_taken_in_the_order_in_which_they_came(tmp_path, clock, jump):
    requests = DeviceRequests(tmp_path / "cpu.lock")
    sent = []
    for prompt in ("first", "second", "third"):
        sent.append(requests.submit(GenerationRequest(prompt=prompt)))
        clock.set(jump)
    assert all(is_held(path) for path in requests.folder.glob("*.lock"))
    taken = [requests.take() for _ in sent]
    assert [one and one.request.prompt for one in taken] == ["first", "second", "third"]
    for one in sent:
        one.close()


@pytest.mark.parametrize("jump", JUMPS)
def test_a_login_that_has_to_wait_waits_as_long(clock, jump):
    throttle = Throttle()
    assert [throttle.seconds_to_wait("192.0.2.1") for _ in range(TRIES)] == [0] * TRIES
    clock.set(jump)
    assert 0 < throttle.seconds_to_wait("192.0.2.1") <= 60


@pytest.mark.parametrize("jump", JUMPS)
def test_the_time_left_of_a_phase_does_not_count_a_jump(jump):
    left = TimeLeft()
    moments = [0.0, 10.0, 20.0 + jump, 30.0 + jump, 40.0]
    told = [left.update("caching", done, 10, now) for done, now in enumerate(moments)]
    assert told[0] is None
    assert all(seconds is not None and 30.0 <= seconds <= 100.0 for seconds in told[1:]), told


@pytest.mark.parametrize("jump", JUMPS)
def test_a_run_is_told_alike_though_its_journal_was_written_by_a_wrong_clock(tmp_path, clock, jump):
    run = Run(tmp_path)
    journal = Journal(run.journal)
    journal(RunStarted(step=0, steps=9, device="cpu", precision="fp32", base="x", images=3, modules=1, parameters=1,
                       share=0.1))  # fmt: skip
    for done in range(1, 4):
        clock.set(jump if done == 2 else 1.0)
        journal(Progress(phase="caching", done=done, total=10))
        view = RunView(run).refresh()
        assert view.phase_left is None or 0 <= view.phase_left <= 100
    journal(StepDone(step=1, steps=9, loss=0.1, learning_rate=1.0, seconds=2.0, left=16.0))
    assert RunView(run).refresh().left == 16.0
    journal.close()


def test_a_sheet_is_made_anew_after_a_cell_that_a_clock_made_older(tmp_path, clock):
    axes = (parse_axis("seed", "1-2"),)
    cells = grid_cells(GridCell(prompt="a house", seed=1), axes)
    folder = write_declaration(ImageGrid(axes, cells, {}), tmp_path / "grid")
    noise_image().save(folder / cells[0].file)
    half = xyz_grid.save_contact_sheet(folder).read_bytes()
    clock.set(-DAY)

    class Studio:
        adapters: tuple[str, ...] = ()

        def image_spec(self, *of):
            return of

        def generate_specs(self, specs, save, *others):
            save(0, noise_image(seed=1))
            clock.stamp(folder / cells[1].file)

    xyz_grid.generate_cells(Studio(), folder)
    assert (folder / xyz_grid.SHEET).read_bytes() != half


@pytest.mark.parametrize("jump", JUMPS)
def test_what_is_kept_of_a_file_is_never_older_than_the_file(tmp_path, clock, jump):
    path, cache = tmp_path / "x", StatCache()
    for content in ("one", "two", "six"):
        path.write_text(content)
        clock.stamp(path)
        clock.set(jump)
        assert cache.get(path.read_text, str(path)) == content


@pytest.mark.parametrize("seconds", [0, -1e9, 1e11, 1e18, float("inf")])
def test_a_day_of_any_time_is_a_date_or_nothing(seconds):
    assert len(library_html.day(seconds)) <= 20
