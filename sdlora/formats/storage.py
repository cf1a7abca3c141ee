"""Adapter files on disk: read as untrusted, written atomically."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.adapters.state import AdapterState
from sdlora.errors import ConfigError, FormatError, NonFiniteError
from sdlora.filesystem.writing import write_atomic, write_exclusive
from sdlora.formats import peft, peft_folder
from sdlora.formats.base import Format
from sdlora.formats.checked_tensors import AdapterContents, load_checked_tensors, tensor_types
from sdlora.formats.diffusers import Diffusers
from sdlora.formats.kohya import DORA_ELSEWHERE, Kohya
from sdlora.formats.round_trip import RoundTripReport, check_round_trip

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {"kohya": Kohya(), "diffusers": Diffusers()}
WRITTEN = (*FORMATS, "peft")
"""Formats that adapters are written in: those of files, and PEFT's folder."""
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of a file's number types here, and in torch."""


def read_adapter(path: Path, notice: Callable[[str], None] = _LOG.warning) -> AdapterState:
    """Read the adapter in a safetensors file of any supported format, in float32 on the CPU.

    Keys that name no layer are ignored; ``notice`` gets their number and the first of them. Raises FormatError for a
    file that is damaged, hostile, or of an unsupported method; FileError if it cannot be read.
    """
    contents = open_adapter(path)
    if contents.unknown:
        names = ", ".join(contents.unknown[:3])
        notice(f"{path}: {len(contents.unknown)} keys name no layer and are left out: {names}")
    return contents.state


def open_adapter(path: Path) -> AdapterContents:
    """Read an adapter as ``read_adapter`` does, with everything else in the file or PEFT's folder."""
    if peft_folder.is_peft_folder(path):
        return peft_folder.open_peft_folder(path)
    format = _format_of(path, list(tensor_types(path)))
    found = load_checked_tensors(path, format.parse)
    try:
        state = format.read(found.tensors, found.metadata)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    return AdapterContents(state, format.name, found.unknown, found.types.most_common(1)[0][0])


def write_adapter(state: AdapterState, path: Path, format: str = "kohya", dtype: str = "fp32") -> None:
    """Write ``state`` to ``path`` (``.safetensors``; with ``peft`` a new folder), atomically.

    Its metadata and the hashes of the content are included. Raises ConfigError for an unknown format, type or suffix,
    NonFiniteError for weights that are not finite (in ``dtype``), FormatError for layers that the format cannot hold,
    FileError if it cannot be written.
    """
    _write(state, path, format, dtype, lambda partial: None, write_atomic)


def export_adapter(state: AdapterState, path: Path, format: str = "kohya", dtype: str = "fp32") -> RoundTripReport:
    """Write a new file as ``write_adapter`` does, read it back before it gets its name, and return the comparison.

    Raises FormatError, and leaves nothing, if it does not read back as the same adapter; FileError if it exists.
    """
    reports: list[RoundTripReport] = []
    _write(
        state,
        path,
        format,
        dtype,
        lambda partial: reports.append(check_round_trip(state, open_adapter(partial), dtype)),
        write_exclusive,
    )
    odd = format == "kohya" and any("magnitude" in module.tensors for module in state.modules.values())
    return reports[0]._replace(advice=DORA_ELSEWHERE if odd else "")


def _write(
    state: AdapterState,
    path: Path,
    format: str,
    dtype: str,
    check: Callable[[Path], None],
    write_file: Callable[[Path, Callable[[Path], None]], None],
) -> None:
    """Write the file or folder; ``check`` gets its temporary path before it gets its name by ``write_file``."""
    if state.words:
        raise FormatError(f"{path}: taught words ({', '.join(state.words)}) have no keys in adapter files")
    if format not in WRITTEN or dtype not in DTYPES:
        raise ConfigError(f"{format} {dtype}: formats are {', '.join(WRITTEN)}, types {', '.join(DTYPES)}")
    if format == "peft":
        if path.suffix or path.exists():
            raise ConfigError(f"{path}: PEFT's adapters are folders; give the name of a new one, without an ending")
        parts = peft.write(state)
        for part in parts.values():
            _cast_tensors(part.tensors, path, dtype)
        peft_folder.write_peft_folder(path, parts, state, check)
        return
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: adapters are written as .safetensors; give the file that ending")
    tensors, metadata = FORMATS[format].write(state)
    content = _serialised(_cast_tensors(tensors, path, dtype), metadata)

    def write(partial: Path) -> None:
        partial.write_bytes(content)
        check(partial)

    write_file(path, write)


def _cast_tensors(tensors: "dict[str, Tensor]", path: Path, dtype: str) -> "dict[str, Tensor]":
    """Convert the tensors to a file's type, in place. Raises NonFiniteError for values that are not finite in it."""
    import torch

    for key, tensor in tensors.items():
        if tensor.ndim and tensor.is_floating_point():  # Alpha stays float32: 16 bits may round it.
            tensors[key] = tensor.detach().to("cpu", getattr(torch, DTYPES[dtype])).contiguous()
        if not tensors[key].isfinite().all():
            raise NonFiniteError(f"{path}: {key} is not finite in {dtype}; nothing is written")
    return tensors


def _serialised(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """Return a file's bytes, with the hashes of these very bytes in the header, whose length does not depend on them.

    ``sshs_model_hash`` covers everything after the header, ``sshs_legacy_hash`` 64 KiB at 1 MiB (as A1111 computes
    both).
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


def _format_of(path: Path, keys: list[str]) -> Format:
    """Return the format that knows most of the keys. Raises FormatError if none knows any."""
    format = max(FORMATS.values(), key=lambda candidate: sum(candidate.parse(key) is not None for key in keys))
    if not format.can_read(keys):
        raise FormatError(f"{path}: is no adapter that is known here: {len(keys)} keys such as {', '.join(keys[:3])}")
    return format
