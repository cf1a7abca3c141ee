"""Evaluation of adapter files, as of a run's checkpoints: what their metadata tell, the job, and its result."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sdlora.api.adapters import adapter_name, find_adapter
from sdlora.api.models import base_choices, locate_base, resolve_base, trained_base_settings
from sdlora.data.folder_names import parse_kohya_folder
from sdlora.errors import ConfigError, SdloraError
from sdlora.evaluation.encoder_sources import EncoderNames, require_encoders
from sdlora.evaluation.file_settings import FileSettings as FileSettings
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.report import FILE, SHEET, Evaluation
from sdlora.evaluation.report import read_evaluation as read_evaluation
from sdlora.evaluation.report import result_sheet as result_sheet
from sdlora.evaluation.report import result_stamp as result_stamp
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.events import OnEvent, ignore
from sdlora.filesystem.paths import data_root
from sdlora.filesystem.reading import parse_json
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats.infer_base import incompatible
from sdlora.jobs.evaluation_estimate import EvaluationEstimate, count_images
from sdlora.jobs.evaluation_files import AdapterFiles as AdapterFiles
from sdlora.jobs.evaluation_files import FileEvaluationJob as FileEvaluationJob
from sdlora.jobs.evaluation_files import prior_weight, results_folder, steps_of
from sdlora.jobs.evaluation_plan import plan_encoders, plan_prompts
from sdlora.storage.library import Library

DEFAULTS = EvaluationSettings()
MOST_FILES = 100
LONGEST = 200
"""Characters of a trigger or class: metadata with more tell none."""


class FileEvaluation(NamedTuple):
    """An evaluation of adapter files, and its contact sheet."""

    evaluation: Evaluation
    sheet: Path


class FileFacts(NamedTuple):
    """Facts about an adapter file, from its metadata and its import."""

    base: str
    trigger: str
    class_name: str
    folders: tuple[str, ...]
    """Names of the folders that it was trained on."""


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
    trigger = about.trigger or _trigger(headers[0])
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
    folder = Path(file_evaluation_job(files, settings, data_dir).finish(on_event)).parent
    return FileEvaluation(read_evaluation(folder), folder / SHEET)


def file_evaluation_job(
    files: AdapterFiles, settings: EvaluationSettings = DEFAULTS, data_dir: Path | None = None
) -> FileEvaluationJob:
    """Return the job that evaluates adapter ``files``, which has not started.

    Raises ConfigError for settings of a run, ModelError for an unknown base or what is no encoder, DatasetError for
    unusable images.
    """
    if settings.checkpoints or settings.concept != 1:
        raise ConfigError("checkpoints and concept are of a run; give the adapter files that you want to compare")
    locate_base(files.base)
    file_encoders(files, settings)
    files.load()  # Unusable images are told before anything is loaded.
    return FileEvaluationJob(files, settings, data_root(data_dir))


def file_encoders(files: AdapterFiles, settings: EvaluationSettings = DEFAULTS) -> EncoderNames:
    """Return the names of the models that an evaluation of ``files`` compares images with, and images with prompts.

    Raises ModelError for what is no encoder.
    """
    names = plan_encoders(files.base, files.kind, settings)
    require_encoders(names)
    return names


def file_estimate(files: AdapterFiles, settings: EvaluationSettings = DEFAULTS) -> EvaluationEstimate:
    """Estimate the number of images of an evaluation of ``files``; no preview tells its time.

    Raises DatasetError for unusable images.
    """
    steps, prompts = tuple(step for _, step, _ in files.files), file_prompts(files, settings)
    return EvaluationEstimate(count_images(prompts, len(steps), settings), steps, prompts, None)


def file_evaluation_folder(path: Path, data_dir: Path | None = None) -> Path:
    """Return the folder with the evaluation of the adapter file ``path`` alone; it may not exist."""
    return results_folder(adapter_name(path), [path], data_root(data_dir))


def outdated_file_evaluation(path: Path, data_dir: Path | None = None) -> list[str]:
    """Say whether the adapter file ``path`` changed after its evaluation; empty if not, or if there is none."""
    evaluated = file_evaluation_folder(path, data_dir) / FILE
    with suppress(OSError):
        # A file that replaces another one keeps its time of modification, but not this one.
        if path.stat().st_ctime_ns > evaluated.stat().st_mtime_ns:
            return [f"{adapter_name(path)} changed since"]
    return []


def file_facts(path: Path, data_dir: Path | None = None) -> FileFacts:
    """Return what is known of the adapter file ``path``, each empty where nothing is."""
    header: dict[str, str] = {}
    base = ""
    with suppress(SdloraError):
        header = read_metadata(path)
        base = _base(path, header, "", data_dir)
    trigger, folders = _trigger(header), _trained_folders(header)
    if len(trigger) > LONGEST:
        trigger = ""
    captions = [named[1] for folder in folders if (named := parse_kohya_folder(folder))]
    classes = [text.removeprefix(f"{trigger} ") for text in captions if trigger and text.startswith(f"{trigger} ")]
    return FileFacts(base, trigger, next((text for text in classes if len(text) <= LONGEST), ""), folders)


def _trigger(header: dict[str, str]) -> str:
    return header.get("modelspec.trigger_phrase", "").partition(",")[0].strip()


def _trained_folders(header: dict[str, str]) -> tuple[str, ...]:
    try:
        found = parse_json(header.get("ss_dataset_dirs", ""))
    except ValueError:
        return ()
    return tuple(found) if isinstance(found, dict) else ()


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
