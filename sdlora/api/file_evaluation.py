"""Evaluation of adapter files, as of a run's checkpoints: what their metadata tell, the job, and its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdlora.api.adapters import adapter_name, find_adapter
from sdlora.api.models import base_choices, locate_base, resolve_base, trained_base_settings
from sdlora.errors import ConfigError
from sdlora.evaluation.encoder_sources import require_encoders
from sdlora.evaluation.file_settings import FileSettings as FileSettings
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.report import SHEET, Evaluation, read_evaluation
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.events import OnEvent, ignore
from sdlora.filesystem.paths import data_root
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats.infer_base import incompatible
from sdlora.jobs.evaluation_files import AdapterFiles as AdapterFiles
from sdlora.jobs.evaluation_files import FileEvaluationJob, prior_weight, steps_of
from sdlora.jobs.evaluation_plan import plan_encoders, plan_prompts
from sdlora.storage.library import Library

DEFAULTS = EvaluationSettings()
MOST_FILES = 100


class FileEvaluation(NamedTuple):
    """An evaluation of adapter files, and its contact sheet."""

    evaluation: Evaluation
    sheet: Path


def describe_files(sources: Sequence[str], about: FileSettings, data_dir: Path | None = None) -> AdapterFiles:
    """Return the adapter files that ``sources`` name, with what ``about`` says of them, or else their metadata.

    A source is what ``find_adapter`` takes. Raises ConfigError for files of different bases, one that is given twice,
    or an unknown base, and as ``find_adapter`` does; FormatError for what is no safetensors file.
    """
    paths = [find_adapter(source, data_dir) for source in sources]
    if not 1 <= len(paths) <= MOST_FILES:
        raise ConfigError(f"{len(paths)} files: give 1 to {MOST_FILES}")
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path}: is a folder; evaluate a .safetensors file, such as sdlora export makes of it")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("The same adapter is given twice; give each once.")
    if other := next((path for path in paths[1:] if incompatible(paths[0], path)), None):
        raise ConfigError(f"{paths[0]} and {other}: are of different bases; evaluate them one by one")
    headers = [read_metadata(path) for path in paths]
    base = _base(paths[0], headers[0], about.base, data_dir)
    trigger = about.trigger or headers[0].get("modelspec.trigger_phrase", "").partition(",")[0].strip()
    names = [adapter_name(path) for path in paths]
    if len({*names}) < len(names):
        names = [f"{path.parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    if len({*names}) < len(names):
        raise ConfigError(f"{names[0]}: two files have this name; rename one of them")
    return AdapterFiles(
        [*zip(names, steps_of(headers), paths, strict=True)], base, trained_base_settings(paths, base),
        about.kind or ("subject" if about.class_name else "style"), trigger, about.class_name, about.images,
        prior_weight(headers[0]),
    )  # fmt: skip


def file_prompts(files: AdapterFiles, settings: EvaluationSettings = DEFAULTS) -> EvaluationPrompts:
    """Return the prompts that an evaluation of ``files`` would use. Raises DatasetError for unusable images."""
    return plan_prompts(files.base, files.load(), settings)


def evaluate_files(
    files: AdapterFiles,
    settings: EvaluationSettings = DEFAULTS,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> FileEvaluation:
    """Evaluate adapter ``files`` in a process of its own; the result lies in a folder of ``DATA_DIR/evaluations``.

    Images that an earlier evaluation of the same files generated are reused. Raises ConfigError for settings of a run,
    ModelError for a base or an encoder that cannot be loaded, DatasetError for unusable images.
    """
    if settings.checkpoints or settings.concept != 1:
        raise ConfigError("checkpoints and concept are of a run; give the adapter files that you want to compare")
    locate_base(files.base)
    require_encoders(plan_encoders(files.base, files.kind, settings))
    files.load()  # Unusable images are told before anything is loaded.
    result = FileEvaluationJob(files, settings, data_root(data_dir)).finish(on_event)
    folder = Path(result).parent
    return FileEvaluation(read_evaluation(folder), folder / SHEET)


def _base(path: Path, header: dict[str, str], given: str, data_dir: Path | None) -> str:
    """Return the base of an adapter file: the ``given`` one, that of its run or import, or the one its header names."""
    if given:
        return resolve_base(given, data_dir)
    known = (entry for entry in Library(data_root(data_dir)).adapters() if entry.base)
    for entry in known:
        if path.resolve() in {each.resolve() for each in (entry.path, *(file for _, file in entry.checkpoints))}:
            return entry.base
    named = header.get("ss_sd_model_name", "")
    choices = {name.removesuffix(".safetensors"): value for name, value in base_choices(data_dir)}
    if found := choices.get(named.removesuffix(".safetensors")):
        return found
    told = f"names the base model {named!r}, which is not here" if named else "names no base model"
    raise ConfigError(f"{path}: {told}; give --base")
