"""Read the tensors of untrusted adapter files."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.adapters.state import AdapterState
from sdlora.errors import FormatError
from sdlora.filesystem.paths import PICKLES
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formats.base import Slot
from sdlora.formatting import first_line

if TYPE_CHECKING:
    from torch import Tensor

FOREIGN = {
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".w_norm.": "an adapter of normalisation layers",
    ".b_norm.": "an adapter of normalisation layers",
    ".b2.weight.": "GLoRA",
    ".lora_B.bias": "LoRA with biases",
}
"""Parts of keys that mark unsupported methods; reading only the rest of such a file would give wrong images."""


class AdapterContents(NamedTuple):
    """Contents of an adapter file."""

    state: AdapterState
    format: str
    unknown: list[str]
    """Keys that name no layer."""
    dtype: str
    """Type of most of its numbers, by its safetensors name: ``F16``."""


def refuse_pickle(path: Path) -> None:
    """Raise FormatError, by the name alone, for a kind of file that can run code when it is opened."""
    if path.suffix.lower() in PICKLES:
        raise FormatError(f"{path}: a {path.suffix} file can run code when opened; convert it to .safetensors first")


def tensor_types(path: Path) -> dict[str, str]:
    """Return the names and types of a file's tensors. Raises FormatError if it is no adapter, FileError if it is
    unreadable.
    """
    refuse_pickle(path)
    try:
        header = read_safetensors_header(path)
        types = {key: str(entry["dtype"]) for key, entry in header.items() if key != "__metadata__"}
    except (KeyError, OverflowError, TypeError):
        raise FormatError(f"{path}: is not a safetensors file (its header lists no tensors)") from None
    if not types:
        raise FormatError(f"{path}: holds no tensors")
    for mark, method in FOREIGN.items():
        marked = [key for key in types if mark in f"{key}."]
        if marked:
            raise FormatError(f"{path}: is {method} ({len(marked)} keys such as {marked[0]}), which is not read")
    return types


class CheckedTensors(NamedTuple):
    """Tensors of a file that belong to an adapter, in float32, and what else it contains."""

    tensors: "dict[str, Tensor]"
    metadata: dict[str, str]
    types: "Counter[str]"
    unknown: list[str]


def load_checked_tensors(path: Path, parse: Callable[[str], Slot | None]) -> CheckedTensors:
    """Load the tensors whose names ``parse`` knows; all must be finite. Raises FormatError, FileError."""
    from safetensors import SafetensorError, safe_open

    types = tensor_types(path)
    keys = [key for key in types if parse(key)]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            loaded, metadata = {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(f"{path}: is damaged ({first_line(error)})") from None
    try:
        tensors = {key: _checked_tensor(key, tensor, parse) for key, tensor in loaded.items()}
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    unknown = [key for key in types if key not in tensors]
    return CheckedTensors(tensors, metadata, Counter(types[key] for key in tensors), unknown)


def _checked_tensor(key: str, tensor: Any, parse: Callable[[str], Slot | None]) -> "Tensor":
    """Convert to float32. Raises FormatError unless it is finite and floating-point; some scalars may be integers."""
    slot = parse(key)
    may_be_integer = slot is not None and slot[1] in ("alpha", "on_input")
    if not tensor.is_floating_point() and (tensor.is_complex() or not may_be_integer):
        raise FormatError(f"{key}: has numbers of type {str(tensor.dtype).removeprefix('torch.')}, not floating-point")
    try:
        numbers: Tensor = tensor.float()
    except NotImplementedError:
        raise FormatError(f"{key}: has numbers of a type that is not read ({tensor.dtype})") from None
    if not numbers.isfinite().all():
        raise FormatError(f"{key}: holds NaN or infinite values")
    return numbers
