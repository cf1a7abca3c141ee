"""Adapter files on disk: read with suspicion, written whole or not at all."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.adapters.state import AdapterState
from sdlora.errors import ConfigError, FormatError, NonFiniteError
from sdlora.filesystem.paths import PICKLES
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.filesystem.writing import write_atomic
from sdlora.formats import peft, peft_folder
from sdlora.formats.base import Format, Slot
from sdlora.formats.diffusers import Diffusers
from sdlora.formats.kohya import DORA_ELSEWHERE, Kohya
from sdlora.formats.round_trip import RoundTripReport, check_round_trip

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {"kohya": Kohya(), "diffusers": Diffusers()}
WRITTEN = (*FORMATS, "peft")
"""What adapters are written in: the formats of files, and PEFT's folder."""
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Our names of a file's number types, and torch's."""

FOREIGN = {
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".w_norm.": "an adapter of normalisation layers",
    ".b_norm.": "an adapter of normalisation layers",
    ".b2.weight.": "GLoRA",
    ".lora_B.bias": "LoRA with biases",
}
"""Marks in keys of what would give wrong pictures if only the rest of its file were read."""


class AdapterContents(NamedTuple):
    """What a file holds."""

    state: AdapterState
    format: str
    unknown: list[str]
    """Keys that name no layer."""
    dtype: str
    """The type of most of its numbers, by its safetensors name: ``F16``."""


def read_adapter(path: Path, notice: Callable[[str], None] = _LOG.warning) -> AdapterState:
    """The adapter in a safetensors file of any known format, in float32 on the CPU.

    Keys that name no layer are left out, and ``notice`` is told their number and the first of them.
    Raises FormatError for anything damaged, hostile, or of a method not served; FileError if it cannot be read.
    """
    contents = open_adapter(path)
    if contents.unknown:
        names = ", ".join(contents.unknown[:3])
        notice(f"{path}: {len(contents.unknown)} keys name no layer and are left out: {names}")
    return contents.state


def open_adapter(path: Path) -> AdapterContents:
    """As ``read_adapter``, with what else there is to say of the file, or of PEFT's folder."""
    if peft_folder.is_peft_folder(path):
        return peft_folder.open_peft_folder(path)
    format = _format_of(path, list(_types(path)))
    found = load_checked_tensors(path, format.parse)
    try:
        state = format.read(found.tensors, found.metadata)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    return AdapterContents(state, format.name, found.unknown, found.types.most_common(1)[0][0])


def write_adapter(state: AdapterState, path: Path, format: str = "kohya", dtype: str = "fp32") -> None:
    """Write ``state`` to ``path`` (``.safetensors``; with ``peft`` a new folder), whole or not at all.

    With its metadata and the hashes of what is written. Raises ConfigError for an unknown format, type or suffix,
    NonFiniteError for weights that are not finite (in ``dtype``), FormatError for layers that the format cannot hold,
    FileError if the disk refuses.
    """
    _write(state, path, format, dtype, lambda place: None)


def export_adapter(state: AdapterState, path: Path, format: str = "kohya", dtype: str = "fp32") -> RoundTripReport:
    """As ``write_adapter``, and read back before it takes its place: what was found is returned.

    Raises FormatError, and leaves nothing, if it does not read back as the same adapter.
    """
    proofs: list[RoundTripReport] = []
    _write(state, path, format, dtype, lambda place: proofs.append(check_round_trip(state, open_adapter(place), dtype)))
    odd = format == "kohya" and any("magnitude" in module.tensors for module in state.modules.values())
    return proofs[0]._replace(advice=DORA_ELSEWHERE if odd else "")


def _write(state: AdapterState, path: Path, format: str, dtype: str, judge: Callable[[Path], None]) -> None:
    """``judge`` gets what is written while it still has another name."""
    if format not in WRITTEN or dtype not in DTYPES:
        raise ConfigError(f"{format} {dtype}: formats are {', '.join(WRITTEN)}, types {', '.join(DTYPES)}")
    if format == "peft":
        if path.suffix or path.exists():
            raise ConfigError(f"{path}: PEFT's adapters are folders; give the name of a new one, without an ending")
        parts = peft.write(state)
        for part in parts.values():
            _cast_tensors(part.tensors, path, dtype)
        peft_folder.write_peft_folder(path, parts, state, judge)
        return
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: adapters are written as .safetensors; give the file that ending")
    tensors, metadata = FORMATS[format].write(state)
    content = _serialised(_cast_tensors(tensors, path, dtype), metadata)

    def write(place: Path) -> None:
        place.write_bytes(content)
        judge(place)

    write_atomic(path, write)


def _cast_tensors(tensors: "dict[str, Tensor]", path: Path, dtype: str) -> "dict[str, Tensor]":
    """The same in the type of a file, in place. Raises NonFiniteError for what is not finite there."""
    import torch

    for key, tensor in tensors.items():
        if (
            tensor.ndim and tensor.is_floating_point()
        ):  # alpha stays float32: it costs nothing, and 16 bits may round it
            tensors[key] = tensor.detach().to("cpu", getattr(torch, DTYPES[dtype])).contiguous()
        if not tensors[key].isfinite().all():
            raise NonFiniteError(f"{path}: {key} is not finite in {dtype}; nothing is written")
    return tensors


def _serialised(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """A file's bytes, with the hashes of these very bytes in the header: their length does not depend on their value.

    ``sshs_model_hash`` is of all behind the header, ``sshs_legacy_hash`` of 64 KiB at 1 MiB (as A1111 computes both).
    """
    from safetensors.torch import save

    def content(model: str, legacy: str) -> bytes:
        hashes = {"sshs_model_hash": model, "sshs_legacy_hash": legacy, "format": "pt"}
        if "modelspec.sai_model_spec" in metadata:
            hashes["modelspec.hash_sha256"] = f"0x{model}"
        return save(dict(tensors), {**metadata, **hashes})

    draft = memoryview(content("0" * 64, "0" * 8))
    model = hashlib.sha256(draft[8 + int.from_bytes(draft[:8], "little") :]).hexdigest()
    return content(model, hashlib.sha256(draft[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8])


def refuse_pickle(path: Path) -> None:
    """Raises FormatError, by the name alone, for a kind of file that can run code when it is opened."""
    if path.suffix.lower() in PICKLES:
        raise FormatError(f"{path}: a {path.suffix} file can run code when opened; convert it to .safetensors first")


def _types(path: Path) -> dict[str, str]:
    """The names and types of a file's tensors. Raises FormatError for what is no adapter, FileError if unreadable."""
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


def _format_of(path: Path, keys: list[str]) -> Format:
    """The format that knows most of the keys. Raises FormatError if none knows any."""
    format = max(FORMATS.values(), key=lambda candidate: sum(candidate.parse(key) is not None for key in keys))
    if not format.can_read(keys):
        raise FormatError(f"{path}: is no adapter that is known here: {len(keys)} keys such as {', '.join(keys[:3])}")
    return format


class CheckedTensors(NamedTuple):
    """A file's tensors that are an adapter's, in float32, and what else it holds."""

    tensors: "dict[str, Tensor]"
    metadata: dict[str, str]
    types: "Counter[str]"
    unknown: list[str]


def load_checked_tensors(path: Path, parse: Callable[[str], Slot | None]) -> CheckedTensors:
    """The tensors of a file whose names ``parse`` knows, all finite. Raises FormatError, FileError."""
    from safetensors import SafetensorError, safe_open

    types = _types(path)
    keys = [key for key in types if parse(key)]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            loaded, metadata = {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: is damaged ({error})") from None
    try:
        tensors = {key: _checked_tensor(key, tensor, parse) for key, tensor in loaded.items()}
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    unknown = [key for key in types if key not in tensors]
    return CheckedTensors(tensors, metadata, Counter(types[key] for key in tensors), unknown)


def _checked_tensor(key: str, tensor: Any, parse: Callable[[str], Slot | None]) -> "Tensor":
    """``tensor`` in float32. Raises FormatError unless it is finite, and floating-point; some numbers may be whole."""
    slot = parse(key)
    if not tensor.is_floating_point() and slot is not None and slot[1] not in ("alpha", "on_input"):
        raise FormatError(f"{key}: has numbers of type {str(tensor.dtype).removeprefix('torch.')}, not floating-point")
    try:
        numbers: Tensor = tensor.float()
    except NotImplementedError:
        raise FormatError(f"{key}: has numbers of a type that is not read ({tensor.dtype})") from None
    if not numbers.isfinite().all():
        raise FormatError(f"{key}: holds NaN or infinite values")
    return numbers
