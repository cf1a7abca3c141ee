"""Saving what a run needs to go on, so that a power cut at any moment loses at most the steps since.

A state is a folder ``NNNNNN`` with tensors (safetensors), plain values (JSON) and a manifest of
SHA-256 sums. It is written beside its place, flushed, and renamed; nothing in it is ever executed.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from sdlora.errors import FileError
from sdlora.files import fsync_folder, require_free_space, sha256
from sdlora.section import Section

if TYPE_CHECKING:
    import torch

TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class Checkpoint(Section):
    """When the run saves."""

    every: Annotated[int, Field(ge=0)] = 100
    """Steps between checkpoints; 0 saves only on a stop and at the end."""

    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many resumable states to keep. The adapters of all checkpoints are kept."""

    precision: str = Field(default="fp32", pattern="^(fp32|fp16|bf16)$")
    """Precision of saved adapter files: `fp32`, `fp16` or `bf16`. Resuming is exact whichever is chosen."""


class State(NamedTuple):
    """What a run needs to go on after ``step`` finished steps."""

    step: int
    tensors: dict[str, "torch.Tensor"]
    values: dict[str, Any]


def save(folder: Path, state: State, keep: int) -> Path:
    """Write ``state`` as ``folder/NNNNNN`` whole or not at all; keep the newest ``keep``.

    Raises FileError if the disk is full or read-only; older states stay intact.
    """
    from safetensors.torch import save_file

    target = folder / f"{state.step:06d}"
    temporary = folder / f".tmp-{state.step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_free_space(folder, sum(t.numel() * t.element_size() for t in state.tensors.values()) + (1 << 20))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file({name: t.contiguous() for name, t in state.tensors.items()}, temporary / TENSORS)
        (temporary / VALUES).write_text(json.dumps({"step": state.step, **state.values}))
        sums = {name: sha256(temporary / name) for name in (TENSORS, VALUES)}
        (temporary / MANIFEST).write_text(json.dumps(sums))
        for name in (TENSORS, VALUES, MANIFEST):
            _fsync(temporary / name)
        fsync_folder(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        fsync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FileError(f"{target}: the checkpoint cannot be written ({error.strerror or error})") from error
    for old in sorted(_states(folder))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> State | None:
    """The newest state in ``folder`` that verifies, or None. Damaged ones are passed over."""
    for candidate in sorted(_states(folder), reverse=True):
        if verified(candidate):
            return load(candidate)
    return None


def load(folder: Path) -> State:
    """Read a state folder. Raises FileError if it does not verify."""
    from safetensors.torch import load_file

    if not verified(folder):
        raise FileError(f"{folder}: the checkpoint is damaged; resume from another one")
    values = json.loads((folder / VALUES).read_text())
    return State(values.pop("step"), load_file(folder / TENSORS), values)


def verified(folder: Path) -> bool:
    """Whether every file is there and has the sum that the manifest says."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
        return all(sha256(folder / name) == sums[name] for name in (TENSORS, VALUES))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pack_optimizer(optimizer: "torch.optim.Optimizer") -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """An optimizer's state as named tensors and plain values; ``unpack_optimizer`` puts it back exactly."""
    import torch

    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}

    def plain(value: Any, name: str) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in names:  # Prodigy's groups share tensors, and must do so again.
            names[id(value)] = f"optimizer.{name}"
            tensors[f"optimizer.{name}"] = value
        return {"tensor": names[id(value)]}

    values = {
        "state": {
            str(index): {key: plain(value, f"{index}.{key}") for key, value in entry.items()}
            for index, entry in state["state"].items()
        },
        "param_groups": [
            {key: plain(value, f"group{index}.{key}") for key, value in group.items()}
            for index, group in enumerate(state["param_groups"])
        ],
    }
    return tensors, values


def unpack_optimizer(
    optimizer: "torch.optim.Optimizer", tensors: dict[str, "torch.Tensor"], values: dict[str, Any]
) -> None:
    """Give ``optimizer`` back the state that ``pack_optimizer`` took from one like it."""

    def whole(value: Any) -> Any:
        return tensors[value["tensor"]] if isinstance(value, dict) and "tensor" in value else value

    optimizer.load_state_dict(
        {
            "state": {int(i): {k: whole(v) for k, v in entry.items()} for i, entry in values["state"].items()},
            "param_groups": [{k: whole(v) for k, v in group.items()} for group in values["param_groups"]],
        }
    )


def _states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit()]


def _fsync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
