"""The one door: what the command line, the page and Python callers may ask for."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.checkpoint import newest_step
from sdlora.data.step_heuristics import Kind
from sdlora.errors import BusyError, ConfigError, FileError, SdloraError, by_exit_code
from sdlora.events import OnEvent, RunFailed, RunStopped, ignore
from sdlora.families.base_models import available_models as available_models
from sdlora.families.base_models import base_choices as base_choices
from sdlora.families.base_models import bundled_bases as bundled_bases
from sdlora.families.base_models import is_single_file as is_single_file
from sdlora.families.base_models import native_size as native_size
from sdlora.families.base_models import resolve_base as resolve_base
from sdlora.filesystem.paths import as_path, data_root, existing_path, safe_name
from sdlora.filesystem.paths import default_data_dir as default_data_dir
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.peft_folder import is_peft_folder
from sdlora.inference.generation_request import AdapterChoice as AdapterChoice
from sdlora.inference.generation_request import GenerationRequest as GenerationRequest
from sdlora.inference.generation_request import JobStatus as JobStatus
from sdlora.inference.image_grids import AxisSpec as AxisSpec
from sdlora.inference.image_grids import begin_grid as begin_grid
from sdlora.inference.image_grids import best_checkpoint_grid as best_checkpoint_grid
from sdlora.inference.image_grids import grid_folder as grid_folder
from sdlora.inference.image_grids import keep_best as keep_best
from sdlora.inference.image_grids import list_grids as list_grids
from sdlora.inference.image_grids import plan_grid as plan_grid
from sdlora.inference.image_grids import preferred_weight as preferred_weight
from sdlora.inference.image_grids import run_checkpoints as run_checkpoints
from sdlora.inference.inference_client import InferenceClient as InferenceClient
from sdlora.jobs import tool_process
from sdlora.jobs.launch import Training, launch
from sdlora.jobs.library_jobs import LibraryJob as LibraryJob
from sdlora.jobs.library_jobs import extract_job as extract_job
from sdlora.jobs.library_jobs import import_adapters as import_adapters
from sdlora.jobs.library_jobs import inspect_adapter as inspect_adapter
from sdlora.jobs.library_jobs import merge_job as merge_job
from sdlora.jobs.library_jobs import needs_base as needs_base
from sdlora.jobs.library_jobs import resize_job as resize_job
from sdlora.jobs.preflight import RunPlan as RunPlan
from sdlora.jobs.preflight import plan_run as plan_run
from sdlora.jobs.preflight import planned_disk as planned_disk
from sdlora.jobs.preflight import require_alone, require_startable
from sdlora.jobs.profiler import Profiler as Profiler
from sdlora.jobs.run_estimate import RunEstimate as RunEstimate
from sdlora.jobs.run_estimate import estimate_run as estimate_run
from sdlora.jobs.tool_process import ToolJob as ToolJob
from sdlora.jobs.tool_process import bake_job as bake_job
from sdlora.jobs.tool_process import inspect_layers_job as inspect_layers_job
from sdlora.jobs.training_queue import TrainingQueue as TrainingQueue
from sdlora.storage import gallery as gallery
from sdlora.storage.disk_usage import disk_usage as disk_usage
from sdlora.storage.disk_usage import free_space as free_space
from sdlora.storage.gallery import images_folder as images_folder
from sdlora.storage.library import SUFFIX, saved_adapters
from sdlora.storage.library import Library as Library
from sdlora.storage.library import trained_base_settings as trained_base_settings
from sdlora.storage.locks import FOREVER, device_lock, hold_lock
from sdlora.storage.run_folder import Run
from sdlora.training.run_paths import CONFIG

if TYPE_CHECKING:
    from sdlora.config import TrainConfig
    from sdlora.formats.round_trip import RoundTripReport

LOOK_SECONDS = 0.3
"""For a device's lock: who looks whether it is free has it for a moment."""


def runs_in(data_dir: Path | None = None) -> list[Run]:
    """All runs, the newest first."""
    return Run.all(data_root(data_dir))


def find_run(name: str, data_dir: Path | None = None) -> Run:
    """The run called ``name``, or at that path. Raises ConfigError naming those that there are."""
    return Run.find(data_root(data_dir) / "runs", name)


def prepare_run(
    config: "TrainConfig", name: str | None = None, data_dir: Path | None = None, processes: int = 1
) -> Run:
    """Make a new run's folder without starting it (for ``torchrun``). An existing run is never touched.

    What can be seen without torch to be wrong is told first, as the run itself would, and then nothing is written.
    """
    from sdlora.config import with_base

    config = with_base(config, resolve_base(config.model.base, data_dir))
    require_startable(config, processes)
    name = name or safe_name(config.data.trigger or config.data.folder.name, fallback="run")
    return Run.create(data_root(data_dir) / "runs", name, config)


def start_run(
    config: "TrainConfig", name: str | None = None, data_dir: Path | None = None, processes: int = 1
) -> Training:
    """Make a run and start its process."""
    return launch(prepare_run(config, name, data_dir, processes), processes)


def resume_run(run: Run, processes: int = 1) -> Training:
    """Go on with a run from its newest checkpoint.

    Raises BusyError if it runs already, ConfigError if it has finished and its states were freed: it would begin anew.
    """
    if run.held():
        raise BusyError(f"the run {run.name} is running already")
    if run.state == "finished" and not newest_step(run.states):
        raise ConfigError(f"{run.name}: has finished, and has no state to go on from; its adapter is {run.adapter}")
    require_alone(run.config, processes)
    return launch(run, processes)


def extend_run(run: Run, steps: int, processes: int = 1) -> Training:
    """Let a run that has ended go on to step ``steps``, as one of that length would from there.

    Raises BusyError if it runs, ConfigError if it is that far already, or has no state to go on from.
    """
    run.lengthen(steps)
    return resume_run(run, processes)


def duplicate_run(run: Run) -> Run:
    """A new run with the settings of ``run``, not started, under its name and the next free number.

    Raises what ``prepare`` raises.
    """
    return prepare_run(run.config, re.sub(r"-\d{1,3}$", "", run.name) or run.name, run.data_dir)


def use_checkpoint(run: Run, step: int) -> Path:
    """Make the checkpoint of ``step`` the run's adapter, until the run ends anew; all checkpoints stay.

    Raises ConfigError if there is no such checkpoint, BusyError while the run is trained.
    """
    known = run_checkpoints(run)
    if step not in known:
        there = ", ".join(map(str, known)) or "none"
        raise ConfigError(f"{run.name}: there is no checkpoint {step}; there are: {there}")
    if run.held():
        raise BusyError(f"{run.name} is being trained and will write its adapter itself; stop it, or let it end, first")
    write_atomic(run.adapter, known[step].read_bytes())
    return run.adapter


def used_step(run: Run) -> int | None:
    """The step whose checkpoint is the run's adapter now; None if it has none."""
    try:
        path = adapter_of(str(run.folder))
        return int(read_safetensors_header(path).get("__metadata__", {})["ss_steps"])
    except (SdloraError, KeyError, ValueError):
        return None


def train(
    config: "TrainConfig",
    name: str | None = None,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
    processes: int = 1,
) -> Run:
    """Train to the end in a process of its own; ``run.adapter`` is the finished file.

    Raises the SdloraError that the run failed with. A run stopped on request is returned as it is.
    """
    training = start_run(config, name, data_dir, processes)
    try:
        code = training.wait(on_event)
    except BaseException:  # Ctrl-C, or a listener that failed: nothing trains on unseen.
        training.interrupt()
        raise
    if code == 0 or isinstance(training.last, RunStopped):
        return training.run
    raise run_failure(training, code)


def run_failure(training: Training, code: int) -> SdloraError:
    """The error that a run's end stands for, in the class that its exit code names."""
    run, last = training.run, training.last
    if isinstance(last, RunFailed):
        message, code = last.message, last.exit_code
    elif not (message := training.complaint()):
        what = f"the run {run.name} was cut off (exit code {code})"
        if code == FileError.exit_code:  # It could not even write why.
            what = f"{run.folder}: nothing more can be written there; free some space, or mend what else is wrong"
        message = f"{what}; go on with: sdlora resume {run.name}"
    return by_exit_code(code)(message)


def adapter_of(source: str, data_dir: Path | None = None) -> Path:
    """The adapter file that ``source`` names: a file, a run's folder or name, RUN-STEP, or an imported adapter's name.

    Raises ConfigError if there is none, FileError for a file that is not there.
    """
    path = existing_path(source)
    if path is not None and (path.is_file() or is_peft_folder(path)):
        return path
    if source.endswith(SUFFIX):
        raise FileError(f"{source}: there is no such file")
    imported = existing_path(f"{source}{SUFFIX}", data_root(data_dir) / "adapters")
    name, _, step = source.rpartition("-")
    if step.isdecimal() and existing_path(Path(source, CONFIG), data_root(data_dir) / "runs") is None:
        with suppress(ConfigError, KeyError):  # Else it is told that there is no such run.
            return run_checkpoints(find_run(name, data_dir))[int(step)]
    try:
        run = find_run(source, data_dir)
    except ConfigError:
        if imported is not None and imported.is_file():
            return imported
        raise
    found = next(iter(saved_adapters(run)), None)
    if found is None:
        raise ConfigError(f"{source}: this run has saved no adapter yet")
    return found


def adapter_name(path: Path) -> str:
    """What to call the adapter in ``path``: a run's own file is called as the run is, a checkpoint's RUN-STEP."""
    if path.name == "adapter.safetensors":
        return path.parent.name
    run = Run(path.resolve().parent.parent)
    return f"{run.name}-{path.stem}" if path.resolve().parent == run.checkpoints else path.stem


def export_adapter_file(
    source: str, output: Path, format: str = "kohya", dtype: str = "fp32", data_dir: Path | None = None
) -> "RoundTripReport":
    """Write the adapter of a run or file to ``output`` in ``format``'s keys, and read it back.

    Raises ConfigError if it exists, FormatError if the format cannot hold it, FileError if it cannot be written.
    """
    from sdlora.formats import export_adapter, read_adapter

    output = as_path(output)
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    if output.suffix != ".safetensors" and format != "peft":
        raise ConfigError(f"{output}: adapters are .safetensors files; name it {output.stem}.safetensors")
    return export_adapter(read_adapter(adapter_of(source, data_dir)), output, format=format, dtype=dtype)


class AdapterFile(NamedTuple):
    """An adapter to draw with: its name in prompts, its file, and the base it was trained on ("" if unknown)."""

    name: str
    path: Path
    base: str


def adapters_in(data_dir: Path | None = None) -> list[AdapterFile]:
    """The adapters of all runs that have saved one, the newest run first, each followed by its checkpoints, then those
    imported; none that is broken.
    """
    found = []
    for entry in Library(data_root(data_dir)).adapters():
        if not entry.problem:
            found.append(AdapterFile(entry.name, entry.path, entry.base))
            steps = run_checkpoints(entry.run) if entry.run is not None else {}
            found += [AdapterFile(adapter_name(path), path, entry.base) for path in reversed(steps.values())]
    return found


def trigger_words(path: Path) -> str:
    """The words that call the adapter in ``path``, by its header; empty if it names none or cannot be read."""
    from sdlora.formats.inspection import trigger_words

    with suppress(SdloraError):
        metadata = read_safetensors_header(path).get("__metadata__")
        return ", ".join(trigger_words(metadata, most=3)) if isinstance(metadata, dict) else ""
    return ""


def require_one_base(base: str, adapters: Sequence[AdapterFile]) -> None:
    """Raises ModelError if there is no ``base``, ConfigError if two of the ``adapters`` go into no common base."""
    from sdlora.families.base_models import locate_base
    from sdlora.formats.infer_base import incompatible

    locate_base(base)
    for one, other in combinations(adapters, 2):
        if one.base != other.base and incompatible(one.path, other.path):
            trained = " and ".join(
                f"{each.name} was trained on {each.base or 'an unknown base'}" for each in (one, other)
            )
            raise ConfigError(f"{trained}: they cannot be mixed. Choose adapters of one base.")


@contextmanager
def hold_device(device: str, data_dir: Path | None, on_wait: Callable[[str], object]) -> Iterator[None]:
    """Hold ``device``, as a training does, for a ``with`` block; ``on_wait`` is told if another process has it now.

    Raises ConfigError or DeviceError for a device that is not there, FileError if its lock cannot be written.
    """
    from sdlora.generation.device import choose_device

    place = choose_device(device)
    lock_file = device_lock(data_root(data_dir), place)
    try:
        lock = hold_lock(lock_file, f"the device {place}", LOOK_SECONDS)
    except BusyError:
        on_wait(f"waiting for {place}: a training or another drawing has it")
        lock = hold_lock(lock_file, f"the device {place}", FOREVER)
    with lock:
        yield


def preset_for(base: str, kind: Kind) -> str:
    """The name of the preset that suits ``base``: its own, or its family's."""
    from sdlora.config import presets
    from sdlora.families.base_models import family_of

    own = base if base in {path.stem.rpartition("-")[0] for path in presets()} else ""
    return f"{own or ('sdxl' if family_of(base) == 'sdxl' else 'sd15')}-{kind}"


class Exported(NamedTuple):
    """A file in a temporary folder of its own, and what its self-test found."""

    file: Path
    proof: str


def export_to_temporary(source: str, format: str, dtype: str = "fp32", data_dir: Path | None = None) -> Exported:
    """``export_adapter_file`` for a front end: in a process of its own, since reading tensors needs torch, to a
    temporary file.

    PEFT's folder comes as a zip of it. Raises ConfigError if there is no such adapter, FileError for all else.
    """
    file = adapter_of(source, data_dir)
    name, ending = safe_name(adapter_name(file), fallback="adapter"), "zip" if format == "peft" else "safetensors"
    output = Path(tempfile.mkdtemp(prefix="sdlora-export-")) / f"{name}-{format}.{ending}"
    try:
        return Exported(output, tool_process.export_job(file, output, format, dtype).finish())
    except SdloraError:
        shutil.rmtree(output.parent, ignore_errors=True)
        raise


def bake_model(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    dtype: str = "fp16",
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> Path:
    """``base`` with ``adapters`` (run, name or file, and scale) folded in: a new diffusers folder, a zip of one, or for
    a single file another one.

    It runs in a process of its own, as it needs torch; ``on_event`` gets its progress and notices. Settings of the base
    are those of the adapters' runs. Raises ConfigError for an unknown adapter, and what ``sdlora.editing.bake`` raises.
    """
    output = as_path(output)
    files = [(adapter_name(path), path, scale) for path, scale in ((adapter_of(n, data_dir), s) for n, s in adapters)]
    said = trained_base_settings((path for _, path, _ in files), base)
    bake_job(base, files, output, dtype, said).finish(on_event)
    return output
