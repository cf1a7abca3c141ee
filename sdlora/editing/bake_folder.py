"""Bake adapters into a base model, written as a diffusers folder that every tool loads."""

import inspect
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdlora.adapters import attach
from sdlora.adapters.fused import fuse
from sdlora.adapters.state import Scale
from sdlora.diffusion import ZERO_SNR
from sdlora.errors import FileError, NonFiniteError
from sdlora.events import OnEvent, Progress
from sdlora.families.base import Family
from sdlora.families.loading import load_family, quiet_libraries
from sdlora.families.settings import Model
from sdlora.filesystem.writing import pack_folder, rename_new, require_free_space
from sdlora.formats.infer_base import schedule_mismatch
from sdlora.formats.storage import DTYPES, read_adapter
from sdlora.generation.infotext import base_overrides

NOTE = "merged.json"
"""File in the folder that names the base, and the adapters with their scales."""


def bake_folder(
    model: Model, adapters: Sequence[tuple[str, Path, Scale]], output: Path, dtype: str, on_event: OnEvent
) -> None:
    """Write a base with ``adapters`` (name, file, scale) folded in to ``output``: a new folder, or a ``.zip`` of one.

    Called by ``editing.bake``, which checks its arguments.
    """
    overrides = base_overrides(model)
    on_event(Progress(phase="loading the base model"))
    family = load_family(model)
    for number, (name, path, _) in enumerate(adapters):
        on_event(Progress(phase=f"reading {name}"))
        state = read_adapter(path)
        attach.load_state(family.models, state, str(number))
        if odd := schedule_mismatch(name, state.metadata, family.scheduler_config, overrides):
            warnings.warn(odd, stacklevel=2)
    on_event(Progress(phase="folding the adapters in"))
    with fuse(family.models, {str(number): scale for number, (_, _, scale) in enumerate(adapters)}):
        note = {
            "base": Path(model.base).name,
            **overrides,
            "adapters": [{"name": name, "scale": scale} for name, _, scale in adapters],
            "dtype": dtype,
        }
        _write(family, note, output, dtype, on_event)


def _write(family: Family, note: dict[str, Any], output: Path, dtype: str, on_event: OnEvent) -> None:
    """Write the folder atomically: it is made beside ``output`` under another name."""
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            require_free_space(output.parent, 2 * _bytes(family, dtype))
            beside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".merging-", dir=output.parent)))
            folder = beside / output.stem
            on_event(Progress(phase="writing the model"))
            with quiet_libraries():
                pipeline = _pipeline(family, dtype)
                _require_finite(family.models, output, dtype)
                pipeline.save_pretrained(folder, safe_serialization=True)
            (folder / NOTE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if output.suffix != ".zip":
                rename_new(folder, output)
                return
            on_event(Progress(phase="packing the zip file"))
            pack_folder(folder, output)
        except OSError as error:
            raise FileError(f"{output}: cannot be written ({error.strerror or error})") from error


def _pipeline(family: Family, dtype: str) -> Any:
    """Build the pipeline in ``dtype``, with the base's own scheduler (or PNDM, if its kind is unknown).

    If the schedule ends in pure noise and that scheduler cannot start there, it is DDIM's with "trailing" spacing
    (arXiv:2305.08891).
    """
    import diffusers

    config, options = family.scheduler_config, {}
    kind = getattr(diffusers, str(config.get("_class_name")), diffusers.PNDMScheduler)
    if config.get(ZERO_SNR):
        options = {"timestep_spacing": "trailing"}
        if ZERO_SNR not in inspect.signature(kind.__init__).parameters:
            kind = diffusers.DDIMScheduler
    return family.pipeline(kind.from_config(config, **options)).to(dtype=getattr(torch, DTYPES[dtype]))


def _require_finite(models: Mapping[str, nn.Module], output: Path, dtype: str) -> None:
    """Raise NonFiniteError for weights that are not finite in ``dtype``."""
    for part, module in models.items():
        for name, weight in module.named_parameters():
            if not weight.isfinite().all():
                raise NonFiniteError(f"{output}: {part}.{name} is not finite in {dtype}; nothing is written")


def _bytes(family: Family, dtype: str) -> int:
    parameters = sum(p.numel() for module in family.modules.values() for p in module.parameters())
    return parameters * (4 if dtype == "fp32" else 2)
