"""Saving what a run needs to go on, so that a power cut at any moment loses at most the steps since.

A state is a folder ``NNNNNN`` with tensors (safetensors), plain values (JSON) and a manifest of
SHA-256 sums. It is written beside its place, flushed, and renamed; nothing in it is ever executed.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from sdlora import failpoints
from sdlora.errors import FileError, FormatError
from sdlora.filesystem.paths import path_problem
from sdlora.filesystem.reading import find_matching, read_json, sha256
from sdlora.filesystem.writing import TEMPORARY, file_errors, fsync_folder, require_free_space
from sdlora.section import Section

if TYPE_CHECKING:
    import torch

TENSOR = "__tensor__"
"""Marks a value that stands in the file of tensors."""
MOMENTS = {"exp_avg", "exp_avg_sq", "momentum_buffer", "z"}
"""Tensors of an optimizer's state that have their parameter's shape, unless they are kept in fewer dimensions."""
LARGEST_SETTING = 1e30
"""Bound of the numbers among an optimizer's settings: larger ones overflow in float32."""
MOST_VALUES = 16 << 20
"""Bytes of the plain values: four times what the largest adapter's optimizer has."""
TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class Checkpoint(Section):
    """Frequency, number and precision of saved files."""

    every: Annotated[int, Field(ge=0)] = 100
    """Steps between checkpoints; 0 saves only on a stop and at the end."""

    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of resumable states to keep. The adapters of all checkpoints are kept."""

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of saved adapter files: `fp32`, `fp16` or `bf16`. Resuming is exact whichever is chosen."""


class State(NamedTuple):
    """Everything that a run needs to continue after ``step`` finished steps."""

    step: int
    tensors: dict[str, "torch.Tensor"]
    values: dict[str, Any]


def save(folder: Path, state: State, keep: int) -> Path:
    """Write ``state`` as ``folder/NNNNNN`` whole or not at all; keep the newest ``keep``.

    Raises FileError if the disk is full or read-only; older states stay intact.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"{state.step:06d}"
    with suppress(FileError):
        if is_verified(target):  # A stop right after a checkpoint: what is there is this very state.
            drop_older(folder, state.step, keep)
            return target
    temporary = folder / f"{TEMPORARY}{state.step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_free_space(folder, sum(t.numel() * t.element_size() for t in state.tensors.values()) + (1 << 20))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        failpoints.point("state.begun")
        save_file({name: t.contiguous() for name, t in state.tensors.items()}, temporary / TENSORS)
        failpoints.point("state.tensors")
        (temporary / VALUES).write_text(json.dumps({"step": state.step, **state.values}))
        failpoints.point("state.values")
        sums = {name: sha256(temporary / name) for name in (TENSORS, VALUES)}
        (temporary / MANIFEST).write_text(json.dumps(sums))
        failpoints.point("state.manifest")
        for name in (TENSORS, VALUES, MANIFEST):
            _fsync(temporary / name)
        fsync_folder(temporary)
        failpoints.point("state.flushed")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        failpoints.point("state.renamed")
        fsync_folder(folder)
    except (OSError, SafetensorError) as error:  # The second is how the tensors' writer says that the disk is full.
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        remedy = "mend that, then resume; what was saved before is whole"
        raise FileError(f"{target}: the checkpoint cannot be written ({reason}); {remedy}") from error
    drop_older(folder, state.step, keep)
    return target


def drop_older(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest ``keep`` states up to ``step``. Later ones are damaged: the run began before them."""
    for old in [path for path in _states(folder) if _step(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
        failpoints.point("state.dropped")


def newest_state(folder: Path, notice: Callable[[str], None] = lambda message: None) -> State | None:
    """The newest state in ``folder`` that verifies, or None. Damaged ones are passed over, and ``notice`` is told.

    Raises FileError for one that cannot be read: it may be whole.
    """
    candidates = _states(folder)[::-1]
    for candidate in candidates:
        if is_verified(candidate):
            return load(candidate)
        last = "there is none before it, and the run begins anew"
        what_now = last if candidate == candidates[-1] else "the one before it is taken"
        notice(f"the checkpoint {candidate.name} is damaged; {what_now}")
    return None


def newest_step(folder: Path) -> int:
    """The step of the newest state in ``folder``, whole or not; 0 if there is none."""
    return max(map(_step, _states(folder)), default=0)


def require_space(folder: Path, adapter_bytes: int, keep: int, files: int) -> None:
    """Raises FileError unless a run's checkpoints fit on the disk of ``folder``: ``keep`` states and one in writing
    (each the adapter and, at most, two moments of it), and ``files`` adapter files.
    """
    require_free_space(folder, (3 * (keep + 1) + files) * adapter_bytes)


def load(folder: Path) -> State:
    """Read a state folder: data alone, whoever wrote it. Raises FileError if it does not verify, or is no state."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged = FileError(f"{folder}: the checkpoint is damaged; resume from another one")
    if not is_verified(folder):
        raise damaged
    try:
        values = read_json(folder / VALUES, MOST_VALUES)
        tensors = load_file(folder / TENSORS)
    except (FormatError, SafetensorError):
        raise damaged from None
    if not isinstance(values, dict) or values.get("step") != _step(folder):
        raise damaged
    return State(values.pop("step"), tensors, values)


def is_verified(folder: Path) -> bool:
    """Return whether every file exists and has the checksum in the manifest. Raises FileError if one cannot be read."""
    files = [folder / name for name in (TENSORS, VALUES, MANIFEST)]
    if any(path_problem(path, folder) or not path.is_file() for path in files):
        return False
    with file_errors(folder, "read"):
        try:
            sums = read_json(folder / MANIFEST)
            return all(sha256(folder / name) == sums[name] for name in (TENSORS, VALUES))
        except (FormatError, KeyError, TypeError):
            return False


def pack_optimizer(optimizer: "torch.optim.Optimizer") -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """An optimizer's state as named tensors and plain values; ``unpack_optimizer`` puts it back exactly."""
    import torch

    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, dict):  # bitsandbytes keeps its tensors one level further down
            return {key: plain(inner, f"{name}.{key}") for key, inner in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in names:  # Prodigy's groups share tensors, and must do so again.
            names[id(value)] = f"optimizer.{name}"
            tensors[f"optimizer.{name}"] = value
        return {TENSOR: names[id(value)]}

    values = {
        "state": {str(index): plain(entry, str(index)) for index, entry in state["state"].items()},
        "param_groups": [plain(group, f"group{index}") for index, group in enumerate(state["param_groups"])],
    }
    return tensors, values


def unpack_optimizer(
    optimizer: "torch.optim.Optimizer", tensors: dict[str, "torch.Tensor"], values: dict[str, Any]
) -> None:
    """Give ``optimizer`` back the state that ``pack_optimizer`` took from one like it.

    Raises ValueError, KeyError or TypeError for a state of another optimizer, or of other parameters.
    """
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group, saved in zip(optimizer.param_groups, values["param_groups"], strict=True):
        for name in group.keys() & saved.keys() - {"params"}:
            if not _alike(group[name], saved[name]):
                raise ValueError(f"the optimizer's {name} is of another kind")
    for index, entry in values["state"].items():
        for name in MOMENTS & entry.keys():
            tensor, parameter = tensors[entry[name][TENSOR]], own[int(index)]
            if tensor.is_complex() or (tensor.ndim == parameter.ndim and tensor.shape != parameter.shape):
                raise ValueError(f"the optimizer's {name} of parameter {int(index)} is of another shape")

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return tensors[value[TENSOR]] if TENSOR in value else {key: whole(inner) for key, inner in value.items()}

    optimizer.load_state_dict(
        {
            "state": {int(index): whole(entry) for index, entry in values["state"].items()},
            "param_groups": [whole(group) for group in values["param_groups"]],
        }
    )


def _alike(own: Any, saved: Any) -> bool:
    """Return whether a saved setting of an optimizer's group can replace ``own``."""
    if isinstance(own, list | tuple):
        return isinstance(saved, list) and len(own) == len(saved) and all(map(_alike, own, saved))
    if isinstance(own, bool):
        return saved is own
    if isinstance(own, int | float):
        number = isinstance(saved, int | float) and (saved == own or abs(saved) < LARGEST_SETTING)  # No NaN.
        return number or (isinstance(saved, dict) and TENSOR in saved)
    return not isinstance(own, str) or isinstance(saved, str)


def _states(folder: Path) -> list[Path]:
    """The states' folders, in the order of their steps."""
    return sorted(
        (path for path in find_matching(folder, "[0-9]*") if path.name.isdecimal() and path.is_dir()), key=_step
    )


def _step(folder: Path) -> int:
    return int(folder.name)


def _fsync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
