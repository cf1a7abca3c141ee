"""Bake adapters into a full model: a single file tensor by tensor, a folder as a whole."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdlora.adapters.compatibility import require_compatible
from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.errors import ConfigError, NonFiniteError
from sdlora.events import OnEvent, OnProgress, ignore, report_progress
from sdlora.families.base_models import locate_base
from sdlora.families.layer_weights import TensorLocation, group_by_tensor, locate_tensors
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.families.single_file import SCHEDULE_MARKS, marked_schedule, schedule_marks, schedule_of_file
from sdlora.filesystem.paths import as_path
from sdlora.filesystem.safetensors_header import encode_header, read_safetensors_header
from sdlora.filesystem.writing import require_free_space, write_exclusive
from sdlora.formats import read_adapter
from sdlora.formats.infer_base import schedule_mismatch
from sdlora.formats.storage import DTYPES

DTYPE_NAMES = ("fp32", "fp16")
"""Number types in which a baked model is written."""
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's names of the types that are written, and safetensors'."""
NOTHING: Mapping[str, Any] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
"""Header entry of a tensor whose name alone matters."""
Change = tuple[ModuleState, float]
"""A layer's part of an adapter, and the scale."""


def bake(
    model: str | Model,
    adapters: Sequence[tuple[str, Path, float]],
    output: Path,
    dtype: str = "fp16",
    on_event: OnEvent = ignore,
) -> Path:
    """Write a base with ``adapters`` (name, file, scale) folded into its weights to the new path ``output``.

    A ``.safetensors`` file of a single-file base is written tensor by tensor in the layout of the base, with one layer
    at a time in memory; otherwise a diffusers folder, or a ``.zip`` of one. Sums are made in float32 and rounded once.
    Overrides of the base's schedule in ``model`` are written too. Warns of adapters that were trained with another
    schedule. Raises ConfigError, ModelError, FormatError, MismatchError, FileError.
    """
    output = as_path(output)
    if dtype not in DTYPE_NAMES:
        raise ConfigError(f"{dtype}: a model is written in {' or '.join(DTYPE_NAMES)}")
    if not adapters:
        raise ConfigError("name at least one adapter to fold in")
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    model = model if isinstance(model, Model) else Model(base=model)
    if output.suffix != ".safetensors":
        from sdlora.editing.bake_folder import bake_folder  # Here: live models take seconds to import.

        bake_folder(model, adapters, output, dtype, on_event)
        return output
    source = locate_base(model.base)
    if source.kind != "file":
        raise ConfigError(
            f"{output}: {model.base} is no single file, and becomes a folder; leave out .safetensors, or use .zip"
        )
    states = [(name, read_adapter(path), scale) for name, path, scale in adapters]
    _warn(Path(source.location), model, states)
    progress = report_progress(on_event, "writing tensors")
    _bake_file(Path(source.location), model, states, output, getattr(torch, DTYPES[dtype]), progress)
    return output


def _warn(file: Path, model: Model, adapters: Sequence[tuple[str, AdapterState, float]]) -> None:
    """Warn of adapters that were trained with another schedule than the file has, or ``model`` overrides."""
    scheduler_config, overrides = schedule_of_file(file, model), model.model_dump(exclude_defaults=True)
    for name, state, _ in adapters:
        if odd := schedule_mismatch(name, state.metadata, scheduler_config, overrides):
            warnings.warn(odd, stacklevel=3)


def _bake_file(
    file: Path,
    model: Model,
    adapters: Sequence[tuple[str, AdapterState, float]],
    output: Path,
    dtype: torch.dtype,
    on_progress: OnProgress,
) -> None:
    models = build_meta_model(model.base).models
    for _, state, _ in adapters:
        require_compatible(models, state)
    paths = list(dict.fromkeys(path for _, state, _ in adapters for path in state.modules))
    changes = {
        path: [(state.modules[path], scale) for _, state, scale in adapters if path in state.modules] for path in paths
    }
    layers = group_by_tensor(locate_tensors(model.base, paths))
    header = {
        key: entry
        for key, entry in read_safetensors_header(file).items()
        if key not in ("__metadata__", *SCHEDULE_MARKS)
    }
    header |= {mark: NOTHING for mark in schedule_marks({**marked_schedule(file), **model.schedule})}
    note = json.dumps([{"name": name, "scale": scale} for name, _, scale in adapters], ensure_ascii=False)
    written = _header(header, dtype, {"format": "pt", "sdlora_merged": note})
    require_free_space(output.parent, len(written) + sum(_size(entry, dtype) for entry in header.values()))

    def write(partial: Path) -> None:
        with open(partial, "wb") as out:
            out.write(written)
            tensors = zip(header, _tensors(file, list(header), layers, changes), strict=True)
            for number, (key, tensor) in enumerate(tensors):
                narrow = tensor.to(dtype) if _floats(header[key]) else tensor
                if narrow.is_floating_point() and not narrow.isfinite().all():
                    raise NonFiniteError(f"{output}: {key} is not finite in {dtype}; nothing is written")
                out.write(narrow.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
                on_progress(number + 1, len(header))
        read_safetensors_header(partial)  # Raises if the file is incomplete.

    write_exclusive(output, write)


def _tensors(
    file: Path,
    keys: Sequence[str],
    layers: Mapping[str, list[tuple[str, TensorLocation]]],
    changes: Mapping[str, list[Change]],
) -> Iterator[torch.Tensor]:
    """Yield the tensors of ``file`` in order, changed by the adapters."""
    biases = {key.removesuffix("weight") + "bias": found for key, found in layers.items()}
    with safe_open(file, framework="pt") as opened:
        for key in keys:
            tensor = torch.empty(0) if key in SCHEDULE_MARKS else opened.get_tensor(key)
            for path, location in layers.get(key, []):
                rows = _rows(tensor, location)
                tensor = tensor.float()
                weight = tensor[rows].clone()
                for module, scale in changes[path]:
                    tensor[rows] += scale * module.delta_weight(weight)
            for path, location in biases.get(key, []):
                for module, scale in changes[path]:
                    if "diff_b" in module.tensors:
                        tensor = tensor.float()
                        tensor[_rows(tensor, location)] += scale * module.tensors["diff_b"]
            yield tensor


def _rows(tensor: torch.Tensor, location: TensorLocation) -> slice:
    """Return the rows of a tensor that belong to one layer."""
    third = len(tensor) // 3
    return slice(None) if location.third is None else slice(third * location.third, third * (location.third + 1))


def _header(header: Mapping[str, Any], dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    """Build the safetensors header of the same tensors in the same order, floating-point ones in ``dtype``."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for key, entry in header.items():
        end = start + _size(entry, dtype)
        name = NAMES[str(dtype).removeprefix("torch.")] if _floats(entry) else entry["dtype"]
        entries[key] = {"dtype": name, "shape": entry["shape"], "data_offsets": [start, end]}
        start = end
    return encode_header(entries)


def _floats(entry: Mapping[str, Any]) -> bool:
    return str(entry["dtype"]).startswith(("F", "BF"))  # 8-bit ones too: they widen.


def _size(entry: Mapping[str, Any], dtype: torch.dtype) -> int:
    start, end = entry["data_offsets"]
    return math.prod(entry["shape"]) * dtype.itemsize if _floats(entry) else end - start
