"""Adapters of runs and imported ones: find, name, export and choose them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.api.models import locate_base
from sdlora.api.training import find_run
from sdlora.errors import BusyError, ConfigError, FileError, SdloraError
from sdlora.filesystem.paths import as_path, data_root, existing_path, safe_name, trimmed_name
from sdlora.filesystem.safetensors_header import copy_with_metadata, read_metadata
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.metadata import WEIGHT, build_a1111_card, sd_version, weight_metadata
from sdlora.formats.peft_folder import is_peft_folder
from sdlora.jobs.tool_process import export_job
from sdlora.storage.library import ImportResult as ImportResult
from sdlora.storage.library import Library as Library
from sdlora.storage.library_entries import SUFFIX, saved_adapters
from sdlora.storage.library_entries import LibraryEntry as LibraryEntry
from sdlora.storage.library_entries import last_preview as last_preview
from sdlora.storage.run_folder import Run
from sdlora.training.run_paths import CONFIG

if TYPE_CHECKING:
    from sdlora.formats.round_trip import RoundTripReport

LARGEST_WEIGHT = 2.0
"""Larger preferred weights in a header are ignored; the page's sliders end here."""


class AdapterFile(NamedTuple):
    """An adapter to generate with: its name in prompts, its file, and its base model ("" if unknown)."""

    name: str
    path: Path
    base: str


def find_adapter(source: str, data_dir: Path | None = None) -> Path:
    """Return the adapter file that ``source`` names: a file, a run's folder or name, RUN-STEP, or an imported adapter.

    Raises ConfigError if there is none, FileError for a missing file.
    """
    path = existing_path(source)
    source = trimmed_name(source)
    if path is not None and (path.is_file() or is_peft_folder(path)):
        return path
    if source.endswith(SUFFIX):
        raise FileError(f"{source}: there is no such file")
    imported = existing_path(f"{source}{SUFFIX}", data_root(data_dir) / "adapters")
    name, _, step = source.rpartition("-")
    if step.isdecimal() and existing_path(Path(source, CONFIG), data_root(data_dir) / "runs") is None:
        with suppress(ConfigError, KeyError):  # Else the error below names the runs.
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
    """Return the name of the adapter file ``path``: the run's name, RUN-STEP for a checkpoint, else the file's stem."""
    if path.name == "adapter.safetensors":
        return path.parent.name
    run = Run(path.resolve().parent.parent)
    return f"{run.name}-{path.stem}" if path.resolve().parent == run.checkpoints else path.stem


def list_adapters(data_dir: Path | None = None, runs: Sequence[Run] | None = None) -> list[AdapterFile]:
    """Return all usable adapters: those of runs, newest first, each followed by its checkpoints; then imports.

    ``runs`` are all runs, if they were just listed.
    """
    found = []
    for entry in Library(data_root(data_dir)).adapters(runs=runs):
        if not entry.problem:
            found.append(AdapterFile(entry.name, entry.path, entry.base))
            found += [AdapterFile(name, path, entry.base) for name, path in entry.checkpoints]
    return found


def run_checkpoints(run: Run) -> dict[int, Path]:
    """Return the adapter files that a run saved while training, by step, in ascending order."""
    return run.checkpoint_files()


def use_checkpoint(run: Run, step: int, scale: float | None = None) -> Path:
    """Copy the checkpoint of ``step`` to the run's adapter file, and return that; all checkpoints stay.

    ``scale`` becomes the preferred weight in its header and on A1111's card.
    Raises ConfigError if there is no such checkpoint, BusyError while the run trains.
    """
    if run.is_locked():
        raise BusyError(f"{run.name} is training and will write its adapter itself; stop it, or wait for its end")
    with run.alone():
        checkpoints = run_checkpoints(run)
        if step not in checkpoints:
            steps = ", ".join(map(str, checkpoints)) or "none"
            raise ConfigError(f"{run.name}: there is no checkpoint {step}; there are: {steps}")
        if scale is None:
            write_atomic(run.adapter, checkpoints[step].read_bytes())
        else:
            _copy_at_weight(checkpoints[step], run.adapter, scale)
    return run.adapter


def _copy_at_weight(source: Path, output: Path, weight: float) -> None:
    """Copy an adapter with the preferred ``weight`` in its header, and on A1111's card, which is written first."""
    metadata = read_metadata(source)
    card = build_a1111_card(sd_version(metadata), metadata.get("modelspec.trigger_phrase", ""), weight)
    write_atomic(output.with_suffix(".json"), card)
    copy_with_metadata(source, output, weight_metadata(weight))


def checkpoint_in_use(run: Run) -> int | None:
    """Return the step whose checkpoint is the run's adapter now; None if it has no adapter."""
    try:
        path = find_adapter(str(run.folder))
        return int(read_metadata(path)["ss_steps"])
    except (SdloraError, KeyError, ValueError):
        return None


def trigger_words(path: Path) -> str:
    """Return the trigger words in the header of the adapter file ``path``; empty if there are none, or on errors."""
    from sdlora.formats.inspection import trigger_words

    with suppress(SdloraError):
        return ", ".join(trigger_words(read_metadata(path), most=3))
    return ""


def preferred_weight(path: Path) -> float:
    """Return the preferred scale in the header of the adapter file ``path``; 1 if it has none, or an invalid one."""
    try:
        weight = float(read_metadata(path)[WEIGHT])
    except (SdloraError, KeyError, ValueError):
        return 1.0
    return weight if -LARGEST_WEIGHT <= weight <= LARGEST_WEIGHT else 1.0


def export_adapter(
    source: str, output: Path, format: str = "kohya", dtype: str = "fp32", data_dir: Path | None = None
) -> "RoundTripReport":
    """Write the adapter of a run or file to ``output`` in ``format``'s keys, and return the result of reading it back.

    Raises ConfigError if ``output`` exists, FormatError if the format cannot express the adapter, FileError.
    """
    from sdlora import formats

    output = as_path(output)
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    if output.suffix != ".safetensors" and format != "peft":
        raise ConfigError(f"{output}: adapters are .safetensors files; name it {output.stem}.safetensors")
    return formats.export_adapter(formats.read_adapter(find_adapter(source, data_dir)), output, format, dtype)


class ExportedFile(NamedTuple):
    """An exported file in a temporary folder, and the sentence of its round-trip check."""

    file: Path
    proof: str


@contextmanager
def exported_file(
    source: str, format: str, dtype: str = "fp32", data_dir: Path | None = None
) -> Iterator[ExportedFile]:
    """Export an adapter to a file that is there within this context, in a process, since reading tensors needs torch.

    PEFT's folder is packed as a zip file. Raises ConfigError for an unknown adapter, and what ``export_adapter``
    raises.
    """
    file = find_adapter(source, data_dir)
    name, ending = safe_name(adapter_name(file), fallback="adapter"), "zip" if format == "peft" else "safetensors"
    with tempfile.TemporaryDirectory(prefix="sdlora-export-") as folder:
        output = Path(folder) / f"{name}-{format}.{ending}"
        yield ExportedFile(output, export_job(file, output, format, dtype).finish())


def require_common_base(base: str, adapters: Sequence[AdapterFile]) -> None:
    """Raise ConfigError if two of the ``adapters`` fit no common base, ModelError if there is no ``base``."""
    from sdlora.formats.infer_base import incompatible

    locate_base(base)
    for one, other in combinations(adapters, 2):
        if one.base != other.base and incompatible(one.path, other.path):
            trained = " and ".join(
                f"{each.name} was trained on {each.base or 'an unknown base'}" for each in (one, other)
            )
            raise ConfigError(f"{trained}: they cannot be mixed. Choose adapters of one base.")
