"""State that all visitors of the page share: the data folder, the queue, the inference process, a snapshot of runs."""

import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL.Image import Image

from sdlora.api.adapters import (
    AdapterFile,
    Library,
    exported_file,
    find_adapter,
    list_adapters,
    require_common_base,
)
from sdlora.api.generation import AdapterChoice, GenerationRequest, InferenceClient, JobStatus, images_folder
from sdlora.api.models import base_choices, resolve_base, trained_base_settings
from sdlora.api.training import Profiler, Run, TrainingQueue, duplicate_run, list_runs, prepare_run
from sdlora.config import TrainConfig, adapt_to_device
from sdlora.data.images import open_image, open_mask
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.events import Event
from sdlora.filesystem.stat_cache import one_look
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.lora_tags import parse_lora_tags
from sdlora.formatting import did_you_mean
from sdlora.ui.evaluation_jobs import Evaluations
from sdlora.ui.run_view import RunView, RunViews

SNAPSHOT_SECONDS = 0.5
"""Seconds for which a snapshot of the runs serves every visitor, while something is trained."""
IDLE_SHARE, LONGEST_SECONDS = 1 / 1000, 30.0
"""Share of a core that looks at the runs may take while nothing is trained: in a large folder they become rarer, up to
so many seconds apart."""
MAX_WAITING = 50
"""Generation requests that may wait at once."""
MAX_IMAGES = 16
"""Images of one request at most."""
THUMBNAIL = 384
"""Longest side of an image on a card, in pixels."""
ACTIVE = ("running", "queued", "stopping")


@dataclass(frozen=True)
class RunsSnapshot:
    """The runs, newest first, the current run with its state, and the adapters, at one moment."""

    runs: tuple[str, ...] = ()
    current: Run | None = None
    state: str = ""
    adapters: tuple[AdapterFile, ...] = ()
    waiting: tuple[str, ...] = ()
    """Names of the runs in the queue, in order."""


class CancellableJob(Protocol):
    """A tool job, or an object that has one; iterating it runs the job and yields its events."""

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
    evaluations: Evaluations = field(default_factory=Evaluations)
    jobs: dict[str, CancellableJob] = field(default_factory=dict)
    """Running jobs by visitor and kind."""
    on_look: Callable[[bool], None] = lambda active: None
    """Told at each look at the runs whether something is trained."""
    _snapshot: RunsSnapshot = RunsSnapshot()
    _valid_until: float = float("-inf")
    """Time of the monotonic clock until which the snapshot serves."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _start_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a run is queued, so that the second of two clicks finds the run of the first."""
    _queued_configs: dict[str, TrainConfig] = field(default_factory=dict)
    """Configs of runs as they were queued; ``train.memory`` may change what a run stores as its own."""

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.expanduser().resolve()
        self.queue = TrainingQueue(self.data_dir)
        self.inference = InferenceClient(self.data_dir, self.device)
        self.profiler = Profiler(self.data_dir)
        self.library = Library(self.data_dir)

    def open(self) -> None:
        """Start watching the queue and the measurements, and empty the trash of what is too old."""
        self.library.trash.forget_old()
        self.queue.watch()
        self.profiler.watch()
        threading.Thread(target=self.snapshot, daemon=True).start()  # The first look reads all.

    def close(self) -> None:
        """Stop the processes of the page; a training goes on."""
        self.queue.close()
        self.profiler.close()
        self.inference.close()
        self.evaluations.close()
        for job in list(self.jobs.values()):
            job.stop()

    def snapshot(self) -> RunsSnapshot:
        """Return the state of the runs, which serves all visitors for a while: it may be that old."""
        with self._lock:
            if time.monotonic() > self._valid_until:
                began = time.thread_time()
                self._snapshot = self._look()
                active = self._snapshot.state in ACTIVE
                self.on_look(active)
                idle = 0.0 if active else (time.thread_time() - began) / IDLE_SHARE
                self._valid_until = time.monotonic() + min(max(SNAPSHOT_SECONDS, idle), LONGEST_SECONDS)
            return self._snapshot

    def _look(self) -> RunsSnapshot:
        with one_look():
            runs, waiting = list_runs(self.data_dir), self.queue.waiting()
            current = self.queue.current(runs, waiting)
            return RunsSnapshot(
                tuple(run.name for run in runs),
                current,
                self.queue.state(current) if current else "",
                tuple(list_adapters(self.data_dir, runs)),
                tuple(run.name for run in waiting),
            )

    def refresh(self) -> RunsSnapshot:
        """Return the state of the runs at this moment."""
        with self._lock:  # A look under way would make what it saw valid.
            self._valid_until = float("-inf")
        return self.snapshot()

    def base_choices(self) -> list[tuple[str, str]]:
        """Return the base models to choose from, as names and values of ``model.base``."""
        return base_choices(self.data_dir) or [("pocket", "pocket")]

    def base_update(self) -> Any:
        """Return an update that lists the current base models; the chosen one stays."""
        return gr.update(choices=self.base_choices())

    def run(self, name: str | None) -> Run | None:
        """Return the run called ``name``, if there is one."""
        with suppress(SdloraError):
            return self.library.run(name) if name in self.snapshot().runs and name else None
        return None

    def run_view(self, run: Run) -> RunView:
        return self.run_views.view(run)

    def train(self, config: TrainConfig, name: str) -> Run:
        """Queue a new run. Raises BusyError if one with the same settings is active, as after a double click."""
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
        """Queue ``run`` to train up to step ``steps``."""
        run.lengthen(steps)
        self._queued_configs.pop(run.name, None)
        self.start(run)

    def measure(self, config: TrainConfig) -> None:
        """Measure what ``config`` takes. Raises BusyError while the device is in use."""
        self.inference.release_memory()
        self.profiler.start(config)

    def start(self, run: Run) -> None:
        """Queue a new or resumed ``run``; measurements stop and inference releases its memory for it."""
        self.queue.add(run)
        self.profiler.stop()
        self.inference.release_memory()
        self.queue.tick()
        self.refresh()

    def adapter(self, name: str) -> AdapterFile:
        """Return the adapter called ``name``. Raises ConfigError with similar names, or the newest."""
        adapters = {adapter.name: adapter for adapter in self.refresh().adapters}
        if name not in adapters:
            newest = ", ".join([*list(adapters)[:3], *(["..."] if len(adapters) > 3 else [])])
            hint = did_you_mean(name, adapters, f"there are: {newest or 'none yet'}.", most=3)
            raise ConfigError(f"There is no adapter {name!r}; {hint}")
        return adapters[name]

    def generate(self, request: GenerationRequest, chosen: Sequence[tuple[str, float]]) -> JobStatus:
        """Queue a request with the adapters ``chosen`` by name and scale, and those that the prompt names.

        Raises ConfigError for an adapter that is unknown or chosen twice, or an empty prompt; BusyError.
        """
        if not request.prompt.strip():
            raise ConfigError("Describe the picture in the prompt.")
        return self.submit(self.with_adapters(request, chosen))

    def with_adapters(self, request: GenerationRequest, chosen: Sequence[tuple[str, float]]) -> GenerationRequest:
        """Return ``request`` with the files of the ``chosen`` adapters and of those that its prompt names.

        Settings of the base that it leaves open are those of the first adapter that was trained on this base.
        Raises ConfigError for an adapter that is unknown or chosen twice.
        """
        request = request.model_copy(update={"base": resolve_base(request.base, self.data_dir)})
        scales = dict(chosen)
        if len(scales) < len(chosen):
            raise ConfigError("The same adapter is chosen twice; give each a row of its own.")
        for name in parse_lora_tags(request.prompt).scales:
            scales.setdefault(name, 0.0)  # The scale in the prompt takes precedence.
        chosen_files = [self.adapter(name) for name in scales]
        require_common_base(request.base, chosen_files)
        mixed = zip(chosen_files, scales.items(), strict=True)
        adapters = tuple(AdapterChoice(name, str(file.path), scale) for file, (name, scale) in mixed)
        trained = trained_base_settings((file.path for file in chosen_files), request.base)
        return request.model_copy(update={"adapters": adapters, "base_settings": {**trained, **request.base_settings}})

    @contextmanager
    def track_job(self, visitor: str, job: CancellableJob) -> Iterator[None]:
        """Return a context in which ``job`` runs. Raises BusyError while the visitor has another job."""
        if self.jobs.setdefault(visitor, job) is not job:
            raise BusyError("A job of yours is already running; wait for it, or cancel it.")
        try:
            yield
        finally:
            del self.jobs[visitor]

    def cancel_job(self, visitor: str) -> None:
        """Stop the visitor's job, if one runs."""
        if job := self.jobs.get(visitor):
            job.stop()

    def submit(self, request: GenerationRequest) -> JobStatus:
        """Queue a request whose adapters are files. Raises BusyError if too many requests wait."""
        newest = self.inference.newest()
        if newest is not None and self.inference.queued_before(newest.number + 1) >= MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} requests are waiting; try again when some of them are done.")
        status = self.inference.submit(request)
        if self.low_memory:
            self.inference.release_memory()  # The request is queued: it runs after these images.
        return status

    @property
    def images_folder(self) -> Path:
        """Folder of the generated images."""
        return images_folder(self.data_dir)


def cache_file(path: Path) -> str:
    """Copy a file to the page's cache, the only folder from which the page serves files."""
    return save_file_to_cache(path, get_upload_folder())


def file_url(path: Path) -> str:
    """Return the address of a file, relative to the page."""
    return f"gradio_api/file={quote(cache_file(path))}"


def thumbnail(path: Path) -> str:
    """Return a small upright copy of an image in the page's cache."""
    return _small_copy(path, ".jpg", lambda: open_image(path).rgb, {"format": "JPEG", "quality": 88})


def small_mask(path: Path) -> str:
    """Return a small copy of a mask in the page's cache, in grey."""
    return _small_copy(path, ".png", lambda: open_mask(path), {"format": "PNG"})


def _small_copy(path: Path, suffix: str, read: Callable[[], Image], options: dict[str, Any]) -> str:
    status = path.stat()
    key = hashlib.sha256(f"{path}:{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()[:24]
    small = Path(get_upload_folder()) / "thumbnails" / f"{key}{suffix}"
    if not small.is_file():
        image = read()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        write_atomic(small, lambda path: image.save(path, **options))
    return str(small)


def export_to_cache(run: Run, format: str) -> str:
    """Export the run's adapter in ``format`` to the page's cache, under the run's name."""
    saved = find_adapter(str(run.folder))  # Runs save kohya's keys.
    with ExitStack() as stack:
        named = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{run.name}.safetensors"
        if format != "kohya":
            saved = stack.enter_context(exported_file(str(saved), format)).file
            named = named.with_stem(f"{run.name}-{format}")
        shutil.copyfile(saved, named)
        return cache_file(named)
