"""Jobs that make adapters of adapters and models in separate processes, and put them into the library."""

import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.adapters.parametrizations import parametrizations
from sdlora.api.editing import EditSettings, ExtractSettings, MergeSettings
from sdlora.errors import ConfigError, SdloraError
from sdlora.events import Event, OnEvent, ignore
from sdlora.filesystem.paths import as_path
from sdlora.filesystem.stat_cache import StatCache
from sdlora.filesystem.writing import file_errors
from sdlora.formats.adapter_check import AdapterCheck as AdapterCheck
from sdlora.formats.header_summary import read_header_summary
from sdlora.jobs.tool_process import ToolJob as ToolJob
from sdlora.jobs.tool_process import bake_job as bake_job
from sdlora.jobs.tool_process import check_adapters, overlap_job
from sdlora.jobs.tool_process import inspect_layers_job as inspect_layers_job
from sdlora.storage.library import ImportResult, Library
from sdlora.storage.library_entries import SUFFIX

NEED_BASE = tuple(own.title for own in parametrizations().values() if own.needs_base)
"""Methods, as header summaries name them, whose update depends on the base's weights."""


class LibraryJob(ToolJob):
    """A tool that makes an adapter and puts it into the library under ``name``.

    ``result`` has the sentence of the round-trip check (``proof``), the number of ``layers``, the lowest and the
    highest of its ``ranks``, and of a resize or a limited merge the share of energy that is ``kept``. If it fails or is
    stopped, nothing remains.
    """

    def __init__(self, library: Library, tool: str, name: str, base: str, **values: Any):
        super().__init__(tool, name=name, base=base, **values)
        self.library, self.name, self.base = library, name, base

    def __iter__(self) -> Generator[Event]:
        scratch = as_path(self.library.data_dir) / "cache" / "making"
        with file_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            made = folder / f"{self.name}{SUFFIX}"
            self.request["output"] = made
            yield from super().__iter__()
            self.name = self.library.move_in(made, self.name, self.base)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, on_event: OnEvent = ignore) -> str:
        """Run the job to its end, and return the adapter's name."""
        super().finish(on_event)
        return self.name


def merge_job(
    library: Library,
    adapters: Sequence[tuple[str, Path, float]],
    settings: EditSettings,
    name: str = "",
    dtype: str = "fp32",
) -> LibraryJob:
    """Merge ``adapters`` (name, file, scale) into one by ``MergeSettings``, or their sum; ranks add up without a limit.

    Raises ConfigError for fewer than two, one chosen twice, a taken name, or a method that needs a limit without one.
    """
    names, chosen = [adapter_name for adapter_name, _, _ in adapters], MergeSettings.from_section(settings)
    require_several(names, "combine")
    values = {"adapters": list(adapters), "dtype": dtype, **chosen.require_limit().model_dump()}
    return LibraryJob(library, "merge", library.choose_name(name, "-".join(names)), **values)


def compare_job(adapters: Sequence[tuple[str, Path]], base: str = "") -> ToolJob:
    """Return ``overlap_job`` of ``adapters`` (name, file). Raises ConfigError as ``require_several`` does."""
    require_several([name for name, _ in adapters], "compare")
    return overlap_job(adapters, base)


def require_several(names: Sequence[str], purpose: str) -> None:
    """Raise ConfigError for fewer than two adapters, or one chosen twice."""
    if len(names) < 2:
        raise ConfigError(f"Choose at least two adapters to {purpose}.")
    if len(set(names)) < len(names):
        raise ConfigError("The same adapter is chosen twice; give each a row of its own.")


def resize_job(
    library: Library,
    adapter: tuple[str, Path],
    settings: EditSettings,
    name: str = "",
    dtype: str = "fp32",
) -> LibraryJob:
    """Resize an ``adapter`` (name, file). Raises ConfigError without a limit, or for a taken name."""
    values = {"file": adapter[1], "dtype": dtype, **settings.require().model_dump()}
    return LibraryJob(library, "resize", library.choose_name(name, f"{adapter[0]}-small"), **values)


def extract_job(
    library: Library,
    base: str,
    tuned: str,
    settings: ExtractSettings,
    name: str = "",
    dtype: str = "fp32",
) -> LibraryJob:
    """Extract the difference of two models as an adapter.

    Raises ConfigError without a limit, or for a taken name, ModelError for a missing model.
    """
    from sdlora.families.base_models import locate_base

    for model in (base, tuned):
        locate_base(model)
    if base == tuned:
        raise ConfigError("Both models are the same one; choose the base that the other was made from.")
    values = {"base": base, "tuned": tuned, "dtype": dtype, **settings.require().model_dump()}
    return LibraryJob(library, "extract", library.choose_name(name, Path(tuned).name.removesuffix(SUFFIX)), **values)


def import_adapters(library: Library, files: Sequence[Path], base: str = "") -> Iterator[ImportResult]:
    """Check each file, against ``base`` if it is given, and copy the valid ones into the library, in order.

    Raises FileError if the base cannot be read, or the library cannot be written.
    """
    for file, check in zip(files, check_adapters(files, base), strict=True):
        yield ImportResult(file.name, "" if check.refusal else library.copy_in(file, base, check), check)


def inspect_adapter(library: Library, name: str, checkpoint: str = "") -> AdapterCheck:
    """Describe an adapter as ``sdlora inspect`` does; a separate process reads the whole file."""
    path = library.file(name, checkpoint)
    return _checks.get(lambda: next(check_adapters([path])), str(path))


_checks: StatCache[AdapterCheck] = StatCache()


def needs_base(file: Path) -> bool:
    """Tell by the header of ``file`` whether its update depends on the base's weights, so that tools need the base."""
    with suppress(SdloraError):
        return read_header_summary(file).method in NEED_BASE
    return False
