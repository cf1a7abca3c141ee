"""Runs: plan, prepare, start, resume and follow them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.api.models import resolve_base
from sdlora.checkpoint import newest_step
from sdlora.data.concepts import trigger_words
from sdlora.data.kohya_project import ImportedConcepts, concepts_in_dataset_file, concepts_in_folders
from sdlora.data.settings import Kind
from sdlora.errors import BusyError, ConfigError, DatasetError, FileError, SdloraError, error_class
from sdlora.events import OnEvent, RunFailed, RunStopped, ignore
from sdlora.filesystem.paths import data_root, existing_path, safe_name
from sdlora.jobs.launch import Training as Training
from sdlora.jobs.launch import launch
from sdlora.jobs.preflight import plan_run as plan_run
from sdlora.jobs.preflight import plan_table as plan_table
from sdlora.jobs.preflight import planned_disk as planned_disk
from sdlora.jobs.preflight import planned_prompt_notices as planned_prompt_notices
from sdlora.jobs.preflight import require_alone, require_startable
from sdlora.jobs.profiler import Profiler as Profiler
from sdlora.jobs.run_estimate import RunEstimate as RunEstimate
from sdlora.jobs.run_estimate import estimate_run as estimate_run
from sdlora.jobs.tool_process import class_images_job as class_images_job
from sdlora.jobs.training_queue import TrainingQueue as TrainingQueue
from sdlora.storage.journal import tail_events as tail_events
from sdlora.storage.library_entries import base_of
from sdlora.storage.run_folder import Run as Run

if TYPE_CHECKING:
    from sdlora.config import TrainConfig

MOST_NAMED = 3
"""Concepts whose triggers name a run that is given no name."""


def import_kohya(source: Path) -> ImportedConcepts:
    """Return the concepts of a project of kohya's trainers: a folder with ``img`` and ``reg``, or a dataset TOML file.

    Raises ConfigError, DatasetError.
    """
    from sdlora.config import read_toml

    found = existing_path(source)
    if found is None:
        raise ConfigError(f"{source}: does not exist; give the folder of kohya's folders, or a dataset file")
    try:
        return concepts_in_folders(found) if found.is_dir() else concepts_in_dataset_file(read_toml(found), found)
    except OSError as error:
        raise DatasetError(f"{error.filename or found}: cannot be read ({error.strerror})") from None


def list_runs(data_dir: Path | None = None) -> list[Run]:
    """Return all runs, the newest first."""
    return Run.all(data_root(data_dir))


def find_run(name: str, data_dir: Path | None = None) -> Run:
    """Return the run called ``name``, or at that path. Raises ConfigError with the names of existing runs."""
    return Run.find(data_root(data_dir) / "runs", name)


def run_base(run: Run) -> str:
    """Return a run's base model; "" if its config cannot be read."""
    return base_of(run)[0]


def prepare_run(
    config: "TrainConfig", name: str | None = None, data_dir: Path | None = None, processes: int = 1
) -> Run:
    """Make a new run's folder without starting it (for ``torchrun``). An existing run is never touched.

    Everything that can be checked without torch is checked before anything is written. Raises ConfigError,
    DatasetError, ModelError, FileError.
    """
    from sdlora.config import with_base

    config = with_base(config, resolve_base(config.model.base, data_dir))
    require_startable(config, processes)
    words = trigger_words(config.all_concepts) or [config.data.folder.name]
    name = name or safe_name(" ".join(words[:MOST_NAMED]), fallback="run")
    return Run.create(data_root(data_dir) / "runs", name, config)


def start_run(
    config: "TrainConfig", name: str | None = None, data_dir: Path | None = None, processes: int = 1
) -> Training:
    """Make a run and start its process. Raises what ``prepare_run`` raises."""
    return launch(prepare_run(config, name, data_dir, processes), processes)


def resume_run(run: Run, processes: int = 1) -> Training:
    """Continue a run from its newest checkpoint.

    Raises BusyError if it is running, ConfigError if it has finished and its states were deleted.
    """
    if run.is_locked():
        raise BusyError(f"the run {run.name} is running already")
    if run.state == "finished" and not newest_step(run.states):
        raise ConfigError(f"{run.name}: has finished, and has no state to continue from; its adapter is {run.adapter}")
    require_alone(run.config, processes)
    return launch(run, processes)


def extend_run(run: Run, steps: int, processes: int = 1) -> Training:
    """Continue an ended run to step ``steps``, with the schedule of a run of that length; one that has stopped early
    does not do so again.

    Raises BusyError if it is running, ConfigError if it has that many steps, or no state to continue from, FileError.
    """
    run.require_inside()  # Before its config is changed.
    run.lengthen(steps)
    return resume_run(run, processes)


def resume_to_end(run: Run, processes: int = 1) -> Training:
    """Continue a run to its last step, and do not stop early again. Raises what ``resume_run`` raises, FileError."""
    run.require_inside()
    run.never_stop()
    return resume_run(run, processes)


def duplicate_run(run: Run) -> Run:
    """Make a new run with the settings of ``run``, not started, under its name and the next free number.

    Raises what ``prepare_run`` raises.
    """
    return prepare_run(run.config, re.sub(r"-\d{1,3}$", "", run.name) or run.name, run.data_dir)


def train(
    config: "TrainConfig",
    name: str | None = None,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
    processes: int = 1,
) -> Run:
    """Train to the end in a separate process, and return the run; ``run.adapter`` is the finished file.

    ``on_event`` gets the run's events. A run that was stopped is returned too. Raises the error that the run failed
    with, and what ``prepare_run`` raises.
    """
    training = start_run(config, name, data_dir, processes)
    try:
        code = training.wait(on_event)
    except BaseException:  # Ctrl-C, or a failed listener: no training goes on unseen.
        training.interrupt()
        raise
    if code == 0 or isinstance(training.last, RunStopped):
        return training.run
    raise run_failure(training, code)


def run_failure(training: Training, code: int) -> SdloraError:
    """Return the error of a run that ended with exit code ``code``."""
    run, last = training.run, training.last
    if isinstance(last, RunFailed):
        message, code = last.message, last.exit_code
    elif not (message := training.printed_error()):
        reason = f"the run {run.name} was cut off (exit code {code})"
        if code == FileError.exit_code:  # It could not write the reason into its journal either.
            reason = f"{run.folder}: nothing more can be written there; free some space, or mend what else is wrong"
        message = f"{reason}; continue with: sdlora resume {run.name}"
    return error_class(code)(message)


def preset_for(base: str, kind: Kind) -> str:
    """Return the name of the preset for ``base``: its own, or its family's."""
    from sdlora.config import presets
    from sdlora.families import FAMILIES
    from sdlora.families.base_models import family_of

    family = family_of(base)
    own = base if base in {path.stem.rpartition("-")[0] for path in presets()} else ""
    return f"{own or FAMILIES[family if family in FAMILIES else next(iter(FAMILIES))].preset}-{kind}"
