"""What all visitors of the page share: the folder, the queue, the drawing process, and one look at the runs for all."""

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from sdlora.api.adapters import (
    AdapterFile,
    Library,
    export_to_temporary,
    find_adapter,
    list_adapters,
    require_common_base,
)
from sdlora.api.generation import AdapterChoice, GenerationRequest, InferenceClient, JobStatus, images_folder
from sdlora.api.models import base_choices, resolve_base, trained_base_settings
from sdlora.api.storage import KEPT_DAYS
from sdlora.api.training import Profiler, Run, TrainingQueue, duplicate_run, list_runs, prepare_run
from sdlora.config import TrainConfig, adapt_to_device
from sdlora.data.images import open_image
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.events import Event
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.lora_tags import parse_lora_tags
from sdlora.formatting import did_you_mean
from sdlora.ui.run_view import RunView, RunViews

SNAPSHOT_SECONDS = 0.5
"""How long one look at the runs serves everyone."""
MAX_WAITING = 50
"""Requests for pictures that may wait at once."""
THUMBNAIL = 384
"""Longest side of a picture on a card, in pixels."""
ACTIVE = ("running", "queued", "stopping")
Found = TypeVar("Found")


@dataclass(frozen=True)
class RunsSnapshot:
    """How things stand: the runs, the newest first, the one that matters now, and the adapters to draw with."""

    runs: tuple[str, ...] = ()
    current: Run | None = None
    state: str = ""
    adapters: tuple[AdapterFile, ...] = ()
    waiting: tuple[str, ...] = ()
    """The runs in the queue, in their order."""


class CancellableJob(Protocol):
    """An errand, or what holds one: going over it tells where it stands, and ``stop`` ends it."""

    def __iter__(self) -> Generator[Event]: ...

    def stop(self) -> None: ...


@dataclass
class AppState:
    """State of the page; it acts through the API alone."""

    data_dir: Path
    device: str = "auto"
    low_memory: bool = False
    queue: TrainingQueue = field(init=False)
    inference: InferenceClient = field(init=False)
    profiler: Profiler = field(init=False)
    library: Library = field(init=False)
    run_views: RunViews = field(default_factory=RunViews)
    jobs: dict[str, CancellableJob] = field(default_factory=dict)
    """What each person who looks at the page has under way."""
    _snapshot: tuple[float, RunsSnapshot] = (float("-inf"), RunsSnapshot())
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _start_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a run is queued: of two clicks, the second finds the first one's run."""
    _queued_configs: dict[str, TrainConfig] = field(default_factory=dict)
    """Runs' settings as they were queued: a run writes what ``train.memory`` made of them into its own."""

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.expanduser().resolve()
        self.queue = TrainingQueue(self.data_dir)
        self.inference = InferenceClient(self.data_dir, self.device)
        self.profiler = Profiler(self.data_dir)
        self.library = Library(self.data_dir)

    def open(self) -> None:
        """Look after the queue and what is to be measured from now on; what lies in the trash too long goes."""
        self.library.trash.empty(KEPT_DAYS)
        self.queue.watch()
        self.profiler.watch()

    def close(self) -> None:
        """End what belongs to the page: a training goes on."""
        self.queue.close()
        self.profiler.close()
        self.inference.close()
        for errand in list(self.jobs.values()):
            errand.stop()

    def snapshot(self) -> RunsSnapshot:
        """How things stand, looked up at most every ``SNAPSHOT_SECONDS``."""
        with self._lock:
            taken, look = self._snapshot
            if time.monotonic() - taken > SNAPSHOT_SECONDS:
                current = self.queue.current()
                state = self.queue.state(current) if current else ""
                runs = tuple(run.name for run in list_runs(self.data_dir))
                waiting = tuple(run.name for run in self.queue.waiting())
                look = RunsSnapshot(runs, current, state, tuple(list_adapters(self.data_dir)), waiting)
                self._snapshot = (time.monotonic(), look)
            return look

    def refresh(self) -> RunsSnapshot:
        """How things stand at this moment."""
        self._snapshot = (float("-inf"), RunsSnapshot())
        return self.snapshot()

    def base_choices(self) -> list[tuple[str, str]]:
        """The base models to choose from: their names, each with what stands for it as ``model.base``."""
        return base_choices(self.data_dir) or [("pocket", "pocket")]

    def base_update(self) -> Any:
        """A field for a base with the models that are there now; what is chosen stays."""
        return gr.update(choices=self.base_choices())

    def run(self, name: str | None) -> Run | None:
        """The run called ``name``, if there is one."""
        with suppress(SdloraError):
            return self.library.run(name) if name in self.snapshot().runs and name else None
        return None

    def run_view(self, run: Run) -> RunView:
        return self.run_views.view(run)

    def train(self, config: TrainConfig, name: str) -> Run:
        """Queue a new run. Raises BusyError if one with these very settings is under way: a second click, say."""
        config = adapt_to_device(config, self.device, self.low_memory)
        with self._start_lock:
            now = self.refresh()
            active = [now.current] if now.current and now.state in ACTIVE else []
            for run in (*active, *self.queue.waiting()):
                if self._queued_configs.get(run.name, run.config) == config:
                    raise BusyError(f"{run.name} is queued or trained with these settings already; change one first.")
            run = prepare_run(config, name, self.data_dir)
            self._queued_configs[run.name] = config
            self.start(run)
            return run

    def duplicate(self, run: Run) -> Run:
        """Queue a new run with the settings of ``run``."""
        copy = duplicate_run(run)
        self.start(copy)
        return copy

    def extend(self, run: Run, steps: int) -> None:
        """Queue ``run`` to go on to step ``steps``."""
        run.lengthen(steps)
        self._queued_configs.pop(run.name, None)
        self.start(run)

    def measure(self, config: TrainConfig) -> None:
        """Measure what ``config`` will take. Raises BusyError while something has the device."""
        self.inference.release_memory()
        self.profiler.start(config)

    def start(self, run: Run) -> None:
        """Queue ``run``, new or to be resumed; what draws or is measured makes room for it."""
        self.queue.add(run)
        self.profiler.stop()
        self.inference.release_memory()
        self.queue.tick()
        self.refresh()

    def adapter(self, name: str) -> AdapterFile:
        """The adapter called ``name``. Raises ConfigError with names that are near it, or the newest."""
        known = {adapter.name: adapter for adapter in self.refresh().adapters}
        if name not in known:
            newest = ", ".join([*list(known)[:3], *(["..."] if len(known) > 3 else [])])
            hint = did_you_mean(name, known, f"there are: {newest or 'none yet'}.", most=3)
            raise ConfigError(f"There is no adapter {name!r}; {hint}")
        return known[name]

    def generate(self, request: GenerationRequest, chosen: Sequence[tuple[str, float]]) -> JobStatus:
        """Queue pictures with the adapters ``chosen`` by name and scale, and those that the prompt names.

        Raises ConfigError for an adapter that is unknown or chosen twice, or an empty prompt; BusyError.
        """
        if not request.prompt.strip():
            raise ConfigError("Write what to draw into the prompt.")
        return self.submit(self.with_adapters(request, chosen))

    def with_adapters(self, request: GenerationRequest, chosen: Sequence[tuple[str, float]]) -> GenerationRequest:
        """``request`` with the files of the adapters ``chosen`` by name and scale, and of those that its prompt names.

        What it does not say of its base is as the run of the first adapter that was trained on it has it.
        Raises ConfigError for an adapter that is unknown or chosen twice.
        """
        request = request.model_copy(update={"base": resolve_base(request.base, self.data_dir)})
        scales = dict(chosen)
        if len(scales) < len(chosen):
            raise ConfigError("The same adapter is chosen twice; give each a row of its own.")
        for name in parse_lora_tags(request.prompt).scales:
            scales.setdefault(name, 0.0)  # The prompt's own scale goes before.
        chosen_files = [self.adapter(name) for name in scales]
        require_common_base(request.base, chosen_files)
        mixed = zip(chosen_files, scales.items(), strict=True)
        adapters = tuple(AdapterChoice(name, str(file.path), scale) for file, (name, scale) in mixed)
        said = trained_base_settings((file.path for file in chosen_files), request.base)
        return request.model_copy(update={"adapters": adapters, "base_settings": {**said, **request.base_settings}})

    @contextmanager
    def track_job(self, person: str, errand: CancellableJob) -> Iterator[None]:
        """For a ``with`` block in which ``errand`` is done. Raises BusyError while ``person`` has another one."""
        if self.jobs.setdefault(person, errand) is not errand:
            raise BusyError("Something of yours is being made already; wait for it, or cancel it.")
        try:
            yield
        finally:
            del self.jobs[person]

    def cancel_job(self, person: str) -> None:
        """Stop what ``person`` has under way."""
        if errand := self.jobs.get(person):
            errand.stop()

    def submit(self, request: GenerationRequest) -> JobStatus:
        """Queue a request whose adapters are files. Raises BusyError if too many wait."""
        newest = self.inference.newest()
        if newest is not None and self.inference.queued_before(newest.number + 1) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests wait to be drawn; ask again when some of them are done.")
        ticket = self.inference.submit(request)
        if self.low_memory:
            self.inference.release_memory()  # It is done in its turn: after these pictures.
        return ticket

    @property
    def images_folder(self) -> Path:
        """Where the pictures lie that were drawn."""
        return images_folder(self.data_dir)


def cache_file(path: Path) -> str:
    """A copy of a file in the page's cache, the only folder from which the page serves files."""
    return save_file_to_cache(path, get_upload_folder())


def file_url(path: Path) -> str:
    """Where a browser finds a file, relative to the page."""
    return f"gradio_api/file={quote(cache_file(path))}"


def thumbnail(path: Path) -> str:
    """A small upright copy of a picture in the page's cache."""
    status = path.stat()
    key = hashlib.sha256(f"{path}:{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()[:24]
    small = Path(get_upload_folder()) / "thumbnails" / f"{key}.jpg"
    if not small.is_file():
        picture = open_image(path).rgb
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        write_atomic(small, lambda place: picture.save(place, format="JPEG", quality=88))
    return str(small)


def export_to_cache(run: Run, format: str) -> str:
    """The run's adapter in ``format`` under the run's name, ready to be served."""
    own = find_adapter(str(run.folder))  # Runs save kohya's keys.
    exported = own if format == "kohya" else export_to_temporary(str(own), format).file
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / f"{run.name}{'' if format == 'kohya' else f'-{format}'}.safetensors"
        shutil.copyfile(exported, named)
        if exported is not own:
            shutil.rmtree(exported.parent, ignore_errors=True)
        return cache_file(named)
