"""Two pages over one data folder, and processes that start, finish and die at any moment, against a model."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sdlora.config import TrainConfig
from sdlora.errors import BusyError, ConfigError
from sdlora.events import RunFailed, RunFinished, RunStarted, RunStopped
from sdlora.filesystem.locks import hold_lock
from sdlora.jobs import training_queue
from sdlora.jobs.training_queue import MAX_DEATHS, TrainingQueue
from sdlora.storage.device_lock import device_lock
from sdlora.storage.journal import Journal
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run

NAMES = ("a", "b", "c")
SIZE = dict(modules=1, parameters=1, share=0.1)
PAGES = st.sampled_from((0, 1))
RUNS = st.sampled_from(NAMES)


class Worker:
    """Stands for a training's process: boots, has its run and its device, begins, and ends in some way."""

    pid = 0

    def __init__(self, run, device):
        self.run, self.device = run, device
        self.code, self.locks, self.begun = None, [], False

    def poll(self):
        return self.code

    def boot(self):
        """Do what the real process does before it trains."""
        try:
            self.locks.append(self.run.hold(0))
            if not self.run.is_queued:
                return self.end(143)
            self.locks.append(hold_lock(self.device, "the device", 0))
        except BusyError:
            self.end(BusyError.exit_code)
        except ConfigError:
            self.end(ConfigError.exit_code)

    def begin(self):
        self.record(RunStarted(step=0, steps=1, device="cpu", precision="fp32", base="pocket", images=3, **SIZE))
        self.run.queued_file.unlink(missing_ok=True)
        self.begun = True

    def record(self, event):
        journal = Journal(self.run.journal)
        journal(event)
        journal.close()

    def end(self, code):
        self.code = code
        for lock in reversed(self.locks):
            lock.release()
        self.locks = []


class Queue(RuleBasedStateMachine):
    @initialize()
    def open(self):
        self.data_dir = Path(tempfile.mkdtemp())
        self.device = device_lock(self.data_dir, torch.device("cpu"))
        self.workers, self.deleted = [], {}
        self.patches = [
            patch.object(training_queue, "launch", self.launch),
            patch.object(Run, "hold", lambda run, wait=0, hold=Run.hold: hold(run, 0)),
        ]
        for patched in self.patches:
            patched.start()
        config = TrainConfig.load("pocket-style", {"data.folder": self.data_dir})
        self.runs = {name: Run.create(self.data_dir / "runs", name, config) for name in NAMES}
        self.pages = [TrainingQueue(self.data_dir) for _ in range(2)]
        self.library = Library(self.data_dir)
        self.wanted = []
        """Runs that wait, in the order that the model expects."""

    def teardown(self):
        for worker in self.workers:
            worker.end(0)
        for patched in self.patches:
            patched.stop()
        shutil.rmtree(self.data_dir)

    def launch(self, run, queued):
        run.require_inside()
        worker = Worker(Run(run.folder), self.device)
        self.workers.append(worker)
        return training_queue.Training(run, worker, 1, 0)

    def alive(self, **states):
        return [w for w in self.workers if w.code is None and all(bool(getattr(w, s)) == v for s, v in states.items())]

    def forget(self, name):
        self.wanted = [other for other in self.wanted if other != name]

    @rule(page=PAGES, name=RUNS)
    def add(self, page, name):
        with suppress(BusyError, ConfigError):
            self.pages[page].add(self.runs[name])
            if name not in self.wanted:
                self.wanted.append(name)

    @rule(page=PAGES, name=RUNS)
    def cancel(self, page, name):
        with suppress(BusyError):
            self.pages[page].cancel(self.runs[name])
            self.forget(name)

    @rule(page=PAGES, name=RUNS)
    def stop(self, page, name):
        if name not in self.deleted:
            self.pages[page].stop(self.runs[name])
            self.forget(name)

    @rule(page=PAGES, name=RUNS)
    def move_to_front(self, page, name):
        with suppress(BusyError):
            before = [run.name for run in self.pages[page].waiting()]
            self.pages[page].move(self.runs[name], "first")
            if before[0] != name:
                self.forget(name)
                self.wanted.insert(self.wanted.index(before[0]), name)  # What starts stays where it is.

    @rule(page=PAGES)
    def tick(self, page):
        self.pages[page].tick()
        for name in [name for name in self.wanted if not self.runs[name].is_queued]:  # It was given up.
            assert isinstance(self.runs[name].events()[-1], RunFailed)
            deaths = [worker for worker in self.workers if worker.run.name == name and worker.code == -9]
            assert sum(not worker.begun for worker in deaths) >= MAX_DEATHS
            self.forget(name)

    @precondition(lambda self: self.alive(locks=False))
    @rule(data=st.data())
    def a_process_boots(self, data):
        data.draw(st.sampled_from(self.alive(locks=False))).boot()

    @precondition(lambda self: self.alive(locks=True, begun=False))
    @rule()
    def a_process_begins(self):
        (worker,) = self.alive(locks=True, begun=False)
        if worker.run.is_queued:
            worker.begin()
            self.forget(worker.run.name)
        else:  # Taken out meanwhile: it stops, and says so.
            worker.record(RunStopped(step=0))
            worker.end(143)

    @precondition(lambda self: self.alive(begun=True))
    @rule()
    def a_process_finishes(self):
        (worker,) = self.alive(begun=True)
        worker.record(RunFinished(step=1, adapter="adapter.safetensors", seconds=1.0))
        worker.end(0)

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def a_process_is_killed(self, data):
        data.draw(st.sampled_from(self.alive())).end(-9)

    @rule(page=PAGES)
    def a_page_is_killed_and_starts_again(self, page):
        self.pages[page] = TrainingQueue(self.data_dir)

    @rule(name=RUNS)
    def delete(self, name):
        with suppress(BusyError, ConfigError):
            self.deleted[name] = self.library.delete_run(name).folder.name

    @precondition(lambda self: self.deleted)
    @rule()
    def restore(self):
        self.library.undo(self.deleted.pop(next(iter(self.deleted))))

    @invariant()
    def one_process_has_the_device(self):
        assert len(self.alive(locks=True)) <= 1

    @invariant()
    def nothing_waits_that_nobody_queued_and_nothing_is_forgotten(self):
        queued = [name for name in NAMES if self.runs[name].is_queued]
        assert sorted(queued) == sorted(self.wanted)

    @invariant()
    def both_pages_see_the_order_of_the_model(self):
        held = {worker.run.name for worker in self.alive(locks=True)}
        for page in self.pages:
            order = [run.name for run in page.waiting()]
            assert order == [name for name in self.wanted if name in order]
            hidden = {*self.wanted} - {*order}
            assert hidden <= held | {worker.run.name for worker in self.alive()}, [
                (n, self.runs[n].is_locked(), page._starts(self.runs[n]), page._unstartable) for n in hidden
            ]

    @invariant()
    def there_is_no_ghost(self):
        folders = {path.name for path in (self.data_dir / "runs").iterdir() if path.is_dir()}
        assert folders == {*NAMES} - {*self.deleted}
        assert all((self.data_dir / "runs" / name / "config.toml").is_file() for name in folders)


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
