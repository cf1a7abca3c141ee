"""Tools that need torch, each run in a process of its own so that a front end imports none.

``python -m sdlora.jobs.tool_process`` is that process; ``sdlora.jobs.tool_jobs`` has the tools.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sdlora.captioning.settings import CaptionSettings
from sdlora.config import TrainConfig
from sdlora.data.concepts import preserves_classes
from sdlora.errors import ConfigError
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.events import OnEvent, Result
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.jobs.job_process import JobProcess, serve_job
from sdlora.masking.settings import MaskSettings


class ToolJob(JobProcess):
    """A run of the tool called ``name`` on ``values``, which may be changed until it starts."""

    def __init__(self, name: str, /, **values: Any):
        super().__init__(["-m", "sdlora.jobs.tool_process"], {"tool": name, **values})


def check_adapters(files: Sequence[Path], base: str = "") -> Iterator[AdapterCheck]:
    """Check each file against ``base`` (or alone), in their order; yield each result as it comes.

    Raises ModelError if there is no such base.
    """
    with closing(iter(ToolJob("check", files=list(files), base=base))) as events:
        results = (event.value for event in events if isinstance(event, Result))
        for found in islice(results, len(files)):  # How the process ends after the last of them says nothing.
            lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
            yield AdapterCheck(**{**found, **lists, "facts": tuple((name, value) for name, value in found["facts"])})


def export_job(file: Path, output: Path, format: str = "kohya", dtype: str = "fp32") -> ToolJob:
    """Write the adapter ``file`` in ``format``'s keys to ``output``; a PEFT folder as a ``.zip`` of it.

    The result is the sentence of the round-trip check.
    """
    return ToolJob("export", file=file, output=output, format=format, dtype=dtype)


def bake_job(
    base: str,
    adapters: Sequence[tuple[str, Path, float]],
    output: Path | None = None,
    dtype: str = "fp16",
    base_settings: Mapping[str, Any] = MappingProxyType({}),
) -> ToolJob:
    """``sdlora.editing.bake`` of ``adapters`` (name, file, scale); ``base_settings`` are a ``GenerationRequest``'s.

    ``output`` may be set later, in the job's ``request``.
    """
    model = {"base": base, **base_settings}
    return ToolJob("bake", adapters=list(adapters), model=model, output=output, dtype=dtype)


def inspect_layers_job(file: Path, plot: Path | None = None, base: str = "") -> ToolJob:
    """Measure the adapter ``file`` layer by layer, and plot that to ``plot``, a PNG file (``request["plot"]``).

    The result is a list of ``[path, norm, rank, effective rank, rank that holds 95 %]``, the largest norm first.
    """
    return ToolJob("inspect_layers", file=file, plot=plot, base=base)


def overlap_job(adapters: Sequence[tuple[str, Path]], base: str = "") -> ToolJob:
    """Compare each two of ``adapters`` (name, file): do they change the same directions of the same layers?

    The result has for each pair its ``adapters``, a ``sentence``, and in ``blocks`` the fields of an ``Overlap`` by
    ``block``, first those of all layers.
    """
    return ToolJob("overlap", adapters=list(adapters), base=base)


class CaptionJob(ToolJob):
    """Write captions for the images in ``folder``, as ``settings`` say; ``data_dir`` has the devices' locks.

    The result has the fields of a ``CaptionReport``. What was written before a stop stays, and is one step to undo.
    """

    STOPPED = "Stopped. The captions written so far are kept; undo takes them back."

    def __init__(self, folder: Path, settings: CaptionSettings, data_dir: Path):
        super().__init__("caption", folder=folder, settings=settings.to_json(), data_dir=data_dir)


class MaskJob(ToolJob):
    """Write masks for the images in ``folder``, as ``settings`` say; ``data_dir`` has the devices' locks.

    The result has the fields of a ``MaskReport``. What was written before a stop stays, and is one step to undo.
    """

    STOPPED = "Stopped. The masks written so far are kept; undo takes them back."

    def __init__(self, folder: Path, settings: MaskSettings, data_dir: Path):
        super().__init__("mask", folder=folder, settings=settings.to_json(), data_dir=data_dir)


class EvaluationJob(ToolJob):
    """Evaluate the checkpoints of the run in ``folder``, as ``settings`` say; ``data_dir`` has the devices' locks.

    The result is the path of ``evaluation.json``. What was generated before a stop stays, and the next one goes on.
    """

    STOPPED = "Stopped. The pictures made so far are kept; evaluate again to go on."

    def __init__(self, folder: Path, settings: EvaluationSettings, data_dir: Path):
        super().__init__("evaluate", run=folder, settings=settings.to_json(), data_dir=data_dir)


def class_images_job(config: TrainConfig, data_dir: Path, make: bool = False) -> ToolJob:
    """List the class images of a run of ``config``; with ``make``, make the missing ones first.

    The result has their ``count``, how many are ``missing``, the ``folders`` where they lie, and in ``images`` the path
    and the prompt of each that exists. Raises ConfigError for a run that uses none.
    """
    if not preserves_classes(config.all_concepts):
        raise ConfigError("prior.weight is 0: no class pictures are used; set it to 1 to preserve the class")
    return ToolJob("class_images", config=config.model_dump(mode="json"), data_dir=data_dir, make=make)


def _run(request: dict[str, Any], report: OnEvent) -> None:
    from sdlora.jobs import tool_jobs

    tool_jobs.run_tool(request.pop("tool"), request, report)


def main() -> int:
    return serve_job(_run)


if __name__ == "__main__":
    sys.exit(main())
