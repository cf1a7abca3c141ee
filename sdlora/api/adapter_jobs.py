"""Jobs that make adapters of adapters and models in separate processes, and put them into the library."""

import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdlora.adapters.parametrizations import parametrizations
from sdlora.adapters.targets import ALL_LAYERS
from sdlora.errors import ConfigError, SdloraError
from sdlora.events import Event, OnEvent, ignore
from sdlora.filesystem.paths import as_path
from sdlora.formats.adapter_check import AdapterCheck as AdapterCheck
from sdlora.formats.header_summary import read_header_summary
from sdlora.jobs.tool_process import ToolJob as ToolJob
from sdlora.jobs.tool_process import bake_job as bake_job
from sdlora.jobs.tool_process import check_adapters
from sdlora.jobs.tool_process import inspect_layers_job as inspect_layers_job
from sdlora.storage.library import SUFFIX, ImportResult, Library, file_version

NEED_BASE = tuple(own.title for own in parametrizations().values() if own.needs_base)
"""Methods, as header summaries name them, whose update depends on the base's weights."""


class LibraryJob(ToolJob):
    """A tool that makes an adapter and puts it into the library under ``name``.

    ``result`` has the sentence of the round-trip check (``proof``), the number of ``layers``, the lowest and the
    highest of its ``ranks``, and of a resize the share of energy that is ``kept``. If it fails or is stopped, nothing
    remains.
    """

    def __init__(self, library: Library, tool: str, name: str, base: str, **values: Any):
        super().__init__(tool, name=name, base=base, **values)
        self.library, self.name, self.base = library, name, base

    def __iter__(self) -> Generator[Event]:
        scratch = as_path(self.library.data_dir) / "cache" / "making"
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            made = folder / f"{self.name}{SUFFIX}"
            self.request["output"] = made
            yield from super().__iter__()
            self.name = self.library.adopt(made, self.name, self.base)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, on_event: OnEvent = ignore) -> str:
        """Run the job to its end, and return the adapter's name."""
        super().finish(on_event)
        return self.name


def merge_job(
    library: Library,
    adapters: Sequence[tuple[str, Path, float]],
    name: str = "",
    rank: int | None = None,
    energy: float | None = None,
    base: str = "",
    dtype: str = "fp32",
) -> LibraryJob:
    """Merge ``adapters`` (name, file, scale) into one; ranks add up unless ``rank`` or ``energy`` limits them.

    Raises ConfigError for fewer than two, one chosen twice, an impossible limit, or a taken name.
    """
    names = [adapter_name for adapter_name, _, _ in adapters]
    if len(names) < 2:
        raise ConfigError("Choose at least two adapters to combine.")
    if len(set(names)) < len(names):
        raise ConfigError("The same adapter is chosen twice; give each a row of its own.")
    _require_cut(rank, energy)
    name = library.name_for(name, "-".join(names))
    cut: dict[str, Any] = {"rank": rank, "energy": energy, "dtype": dtype}
    return LibraryJob(library, "merge", name, base, adapters=list(adapters), **cut)


def resize_job(
    library: Library,
    adapter: tuple[str, Path],
    name: str = "",
    rank: int | None = None,
    energy: float | None = None,
    base: str = "",
    dtype: str = "fp32",
) -> LibraryJob:
    """Resize an ``adapter`` (name, file) to a ``rank`` or share of ``energy``. Raises ConfigError, as ``merge_job``."""
    _require_cut(rank, energy, needed=True)
    name = library.name_for(name, f"{adapter[0]}-small")
    return LibraryJob(library, "resize", name, base, file=adapter[1], rank=rank, energy=energy, dtype=dtype)


def extract_job(
    library: Library,
    base: str,
    tuned: str,
    name: str = "",
    rank: int | None = None,
    energy: float | None = None,
    targets: str = ALL_LAYERS,
    text_encoder: bool = True,
    dtype: str = "fp32",
) -> LibraryJob:
    """Extract the difference of two models as an adapter. Raises ConfigError, ModelError for a missing model."""
    from sdlora.families.base_models import locate_base

    for model in (base, tuned):
        locate_base(model)
    if base == tuned:
        raise ConfigError("Both models are the same one; choose the base that the other was made from.")
    _require_cut(rank, energy, needed=True)
    name = library.name_for(name, Path(tuned).name.removesuffix(SUFFIX))
    what: dict[str, Any] = {"targets": targets or ALL_LAYERS, "text_encoder": text_encoder, "dtype": dtype}
    return LibraryJob(library, "extract", name, base, tuned=tuned, rank=rank, energy=energy, **what)


def import_adapters(library: Library, files: Sequence[Path], base: str = "") -> Iterator[ImportResult]:
    """Check each file, against ``base`` if it is given, and copy the valid ones into the library, in order.

    Raises FileError if the base cannot be read, or the library cannot be written.
    """
    for file, check in zip(files, check_adapters(files, base), strict=True):
        yield ImportResult(file.name, "" if check.refusal else library.keep(file, base, check), check)


def inspect_adapter(library: Library, name: str, checkpoint: str = "") -> AdapterCheck:
    """Describe an adapter as ``sdlora inspect`` does; a separate process reads the whole file."""
    return _inspect(*file_version(library.file(name, checkpoint)))


@lru_cache(256)
def _inspect(path: Path, modified: int, size: int) -> AdapterCheck:
    return next(check_adapters([path]))


def needs_base(file: Path) -> bool:
    """Tell by the header of ``file`` whether its update depends on the base's weights, so that tools need the base."""
    with suppress(SdloraError):
        return read_header_summary(file).method in NEED_BASE
    return False


def _require_cut(rank: int | None, energy: float | None, needed: bool = False) -> None:
    """Raise ConfigError for impossible limits, before a process is started."""
    if rank is not None and rank < 1:
        raise ConfigError(f"rank = {rank}: give 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy = {energy}: give a share above 0, and 1 at most")
    if needed and rank is None and energy is None:
        raise ConfigError("Say how much to keep: a rank, or a share of the energy.")
