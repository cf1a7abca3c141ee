"""Adapters made of adapters and models, in this process: merge, resize, extract, bake, convert, inspect.

Each function checks the path it is to write before it computes anything, and imports torch on its first use.
``adapter_jobs`` does the same in processes of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from sdlora.adapters.targets import ALL_LAYERS
from sdlora.api.adapters import adapter_name, find_adapter
from sdlora.api.models import resolve_base
from sdlora.errors import ConfigError
from sdlora.events import Notice, OnEvent, ignore, report_progress
from sdlora.filesystem.paths import as_path
from sdlora.filesystem.writing import require_free_space
from sdlora.section import Section

if TYPE_CHECKING:
    from sdlora.adapters.state import AdapterState
    from sdlora.editing.low_rank import Cut
    from sdlora.editing.merge_methods import MergeOptions
    from sdlora.formats.round_trip import RoundTripReport


class ExportSettings(Section):
    """Form of an adapter file."""

    format: Literal["kohya", "diffusers", "peft"] = "kohya"
    """Key names and layout: a file of kohya's (A1111, ComfyUI) or diffusers' keys, or PEFT's folder."""

    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the written tensors."""


class RankLimit(Section):
    """Truncation of a layer's update by its singular values; if both are given, the smaller rank counts."""

    rank: int | None = Field(default=None, ge=1)
    """Largest rank of a layer. Merging with neither rank nor energy keeps everything, side by side."""

    energy: float | None = Field(default=None, gt=0, le=1)
    """Share of the squared norm to keep, such as 0.95, in the lowest rank that holds it."""

    @property
    def is_set(self) -> bool:
        """True if a rank or an energy is given."""
        return self.rank is not None or self.energy is not None

    def require(self) -> Self:
        """Return the limit. Raises ConfigError if it is not set."""
        if not self.is_set:
            raise ConfigError("say how much to keep: a rank such as 16, or a share of the energy such as 0.95")
        return self

    def cut(self) -> "Cut":
        """Return the limit as the functions of ``sdlora.editing`` take it."""
        from sdlora.editing.low_rank import Cut

        return Cut(self.rank, self.energy)


class EditSettings(RankLimit):
    """Settings of a merged or resized adapter."""

    base: str = ""
    """Base model: its name, a diffusers folder, a `.safetensors` file or a hub id; for DoRA and (IA)³, whose update
    depends on the base's weights."""


MERGE_METHODS: Mapping[str, str] = {
    "sum": "Adds the changes up: exactly what the adapters do together when images are generated with all of them.",
    "ties": "Keeps each one's largest numbers, and where they pull in opposite directions the stronger side's.",
    "dare": "Drops some of each one's numbers at random, makes the others larger, and adds them up.",
    "directions": "Lets each adapter decide the direction alike, however strong it is; the strength stays.",
    "orthogonal": "Keeps the first as it is, and lets the others act only on what the first leaves alone.",
    "select": "Takes each layer from the one adapter in which it stands out most.",
}
"""A sentence on each way to merge; ``sdlora.editing.merge_methods`` has the formulas and the papers."""
FULL_RANK = ("ties", "dare")
"""Ways whose result needs a limit of its rank."""


class MergeSettings(EditSettings):
    """Settings of an adapter that is merged from several."""

    method: Literal["sum", "ties", "dare", "directions", "orthogonal", "select"] = "sum"
    """Way to combine the changes of a layer: `sum` adds them; `ties` (arXiv:2306.01708) keeps large entries of one
    sign; `dare` (arXiv:2311.03099) drops entries at random; `directions` adds directions and magnitudes apart;
    `orthogonal` (after arXiv:2312.02432) lets later adapters read only what the first does not; `select` (after K-LoRA,
    arXiv:2502.18461) takes each layer from one adapter. `ties` and `dare` need a rank or an energy."""

    density: float | None = Field(default=None, gt=0, le=1)
    """Share of the entries that `ties` and `dare` keep; without it 0.5."""

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the entries that `dare` keeps; without it 0."""

    protect: float | None = Field(default=None, gt=0, le=1)
    """Share of the squared norm of the earlier adapters whose inputs `orthogonal` keeps for them; without it 0.5."""

    def require_limit(self) -> Self:
        """Return the settings. Raises ConfigError for a method of ``FULL_RANK`` without a rank or an energy."""
        if self.method in FULL_RANK and not self.is_set:
            raise ConfigError(
                f"{self.method}: its result fills every rank; say how much to keep: a rank such as 32, or a share of "
                "the energy such as 0.95"
            )
        return self

    def options(self) -> "MergeOptions":
        """Return the method and its options as the functions of ``sdlora.editing`` take them."""
        from sdlora.editing.merge_methods import MergeOptions

        return MergeOptions(self.method, self.density, self.seed, self.protect)


class ExtractSettings(RankLimit):
    """Settings of an adapter that is extracted from two models."""

    targets: Annotated[str, BeforeValidator(lambda text: text or ALL_LAYERS)] = ALL_LAYERS
    """Layers to compare, as the setting adapter.targets; `linear+conv` is all of them."""

    text_encoder: bool = True
    """Compare the text encoders too."""


class BakeSettings(Section):
    """Form of a model that adapters are baked into."""

    dtype: Literal["fp16", "fp32"] = "fp16"
    """Precision of the written tensors."""


def merge_adapters(
    adapters: Sequence[tuple[str, float]],
    output: Path,
    settings: EditSettings,
    export: ExportSettings,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> "RoundTripReport":
    """Write one adapter made of ``adapters`` (run or file, and scale); ranks add up without a limit.

    With plain ``EditSettings`` it equals them together; ``MergeSettings`` choose another method. What a limit left out
    is reported as a notice. Raises ConfigError, MismatchError, ModelError, FormatError, FileError.
    """
    from sdlora import editing

    output = _new_adapter_path(output, export)
    chosen = MergeSettings.from_section(settings).require_limit()
    named = [(*_read(source, data_dir), scale) for source, scale in adapters]
    cut, progress = chosen.cut() if chosen.is_set else None, report_progress(on_event, "merging layers")
    merged = editing.merge_by(chosen.options(), named, cut, _base(chosen, data_dir), progress)
    if cut:
        on_event(Notice(message=f"{merged.kept:.2%} of the energy of the merged changes is kept"))
    return _write(merged.state, output, export)


def compare_adapters(
    sources: Sequence[str],
    base: str = "",
    layers: bool = False,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[str]:
    """Yield, for each two of the adapters (runs or files), how much they change the same things: a sentence, a table.

    The table has a line for each block, and with ``layers`` for each layer. DoRA and (IA)³ need the ``base``. Raises
    ConfigError for fewer than two, MismatchError, ModelError, FormatError, FileError.
    """
    from sdlora.editing.overlap import describe_overlap, overlap, overlap_table

    if len(sources) < 2:
        raise ConfigError("name at least two adapters to compare")
    named = [_read(source, data_dir) for source in sources]
    resolved = resolve_base(base, data_dir) if base else ""
    for one, other in combinations(named, 2):
        found = overlap(one, other, resolved, report_progress(on_event, "comparing layers"))
        yield describe_overlap(found)
        yield from overlap_table(found, layers)


def resize_adapter(
    source: str,
    output: Path,
    settings: EditSettings,
    export: ExportSettings,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> "tuple[str, RoundTripReport]":
    """Write the adapter of a run or file as a LoRA within a limit; also return the ranks and the energy kept.

    Raises what ``merge_adapters`` raises, and ConfigError without a limit.
    """
    from sdlora import editing

    output, cut = _new_adapter_path(output, export), settings.require().cut()
    _, state = _read(source, data_dir)
    resized = editing.resize(state, cut, _base(settings, data_dir), report_progress(on_event, "resizing layers"))
    ranks = sorted(module.rank or 0 for module in resized.state.modules.values())
    kept = f"ranks {ranks[0]} to {ranks[-1]}; {resized.kept:.2%} of the energy is kept"
    return kept, _write(resized.state, output, export)


def extract_adapter(
    base: str,
    tuned: str,
    output: Path,
    settings: ExtractSettings,
    export: ExportSettings,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> "RoundTripReport":
    """Write the LoRA that best approximates the change from the model ``base`` to the model ``tuned``.

    Raises what ``merge_adapters`` raises, and ConfigError without a limit or for targets that name no layer.
    """
    from sdlora import editing

    output, cut = _new_adapter_path(output, export), settings.require().cut()
    base, tuned = resolve_base(base, data_dir), resolve_base(tuned, data_dir)
    progress = report_progress(on_event, "comparing layers")
    state = editing.extract(
        base, tuned, cut, settings.targets, settings.text_encoder, progress,
        lambda text: on_event(Notice(message=text)),
    )  # fmt: skip
    return _write(state, output, export)


def bake_adapters(
    base: str,
    adapters: Sequence[tuple[str, float]],
    output: Path,
    dtype: str = "fp16",
    base_settings: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    on_event: OnEvent = ignore,
) -> Path:
    """Write ``base`` with ``adapters`` (run or file, and scale) folded into its weights, and return the path.

    ``base_settings`` override the base's scheduler settings. Raises ConfigError, ModelError, FormatError,
    MismatchError, FileError.
    """
    from sdlora import editing
    from sdlora.families.settings import Model

    files = [(find_adapter(source, data_dir), scale) for source, scale in adapters]
    model = Model(base=resolve_base(base, data_dir), **(base_settings or {}))
    named = [(adapter_name(path), path, scale) for path, scale in files]
    return editing.bake(model, named, output, dtype, on_event)


def convert_adapters(
    sources: Sequence[str], output: Path, export: ExportSettings, data_dir: Path | None = None
) -> Iterator[tuple[Path, "RoundTripReport"]]:
    """Write each adapter in another format; several go into the folder ``output`` under their own names.

    Yields each written path with what reading it back showed. Nothing is written unless all can be. Raises
    ConfigError, FormatError, FileError.
    """
    named = [_read(source, data_dir) for source in sources]
    if len(named) == 1:
        outputs = [_new_adapter_path(output, export)]
    else:
        names = [name.replace(".", "-") for name, _ in named]
        if len(set(names)) < len(names):
            raise ConfigError("two of the adapters have the same name; convert them one by one")
        outputs = [_new_adapter_path(as_path(output) / f"{name}{_suffix(export)}", export) for name in names]
    for path, (_, state) in zip(outputs, named, strict=True):
        yield path, _write(state, path, export)


def describe_adapter(path: Path, base: str = "") -> Iterator[str]:
    """Yield what the adapter file ``path`` holds, then how much of it fits ``base``, if one is given.

    Raises FormatError, FileError, ModelError, MismatchError if it does not fit.
    """
    from sdlora.formats import inspect_adapter

    yield str(inspect_adapter(path))
    if base:
        from sdlora.formats.adapter_check import require_fits

        yield f"{'fits:':<34} {require_fits(path, base)}"


def inspect_layers(path: Path, base: str = "", plot: Path | None = None, on_event: OnEvent = ignore) -> list[str]:
    """Return a table of an adapter's layers (norm, rank, effective rank), and plot it to a new PNG file ``plot``.

    DoRA and (IA)³ need the ``base``. Raises ConfigError, ModelError, FormatError, FileError.
    """
    from sdlora.editing import layer_spectrum
    from sdlora.formats import read_adapter

    layers = layer_spectrum.spectrum(read_adapter(path), base, report_progress(on_event, "analysing layers"))
    if plot is not None:
        layer_spectrum.save_spectrum_plot(layers, plot)
    return list(layer_spectrum.spectrum_table(layers))


def new_path(output: Path, suffix: str) -> Path:
    """Return ``output`` if it can be written. Raises ConfigError if it exists or has another suffix, FileError."""
    output = as_path(output)
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    if output.suffix != suffix:
        remedy = f"give it the ending {suffix}" if suffix else "PEFT's are folders: leave the ending out"
        raise ConfigError(f"{output}: {remedy}")
    require_free_space(output.parent, 0)
    return output


def _new_adapter_path(output: Path, export: ExportSettings) -> Path:
    return new_path(output, _suffix(export))


def _suffix(export: ExportSettings) -> str:
    return "" if export.format == "peft" else ".safetensors"


def _base(settings: EditSettings, data_dir: Path | None) -> str:
    return resolve_base(settings.base, data_dir) if settings.base else ""


def _read(source: str, data_dir: Path | None) -> "tuple[str, AdapterState]":
    from sdlora.formats import read_adapter

    path = find_adapter(source, data_dir)
    return adapter_name(path), read_adapter(path)


def _write(state: "AdapterState", output: Path, export: ExportSettings) -> "RoundTripReport":
    from sdlora.formats import export_adapter

    metadata = {**state.metadata, "ss_output_name": output.stem, "modelspec.title": output.stem}
    return export_adapter(replace(state, metadata=metadata), output, export.format, export.dtype)
