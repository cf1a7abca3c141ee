"""JSON header of safetensors files: validated reading, and changes that leave the tensors as they are."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.errors import FileError, FormatError
from sdlora.filesystem.reading import parse_json
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import format_bytes, one_line

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the text that Git leaves in place of a large file."""
MAX_HEADER_BYTES = 8 << 20
MAX_ELEMENTS = 1 << 48
"""Elements of a tensor, empty sides aside, far beyond any real one: the strides of larger shapes overflow."""
LONGEST_TENSOR_NAME = 500
"""Characters; the longest real name has about 150."""


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file; its tensors are not read.

    Raises FileError if the file cannot be read, FormatError if it is no complete safetensors file.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would block.
        raise FileError(f"{path}: cannot be read (is no file)")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if LFS_POINTER.startswith(start) and start:
                raise FormatError(f"{path}: is a Git LFS pointer, not the file itself; fetch that with git lfs pull")
            if len(start) < 8 or length > size - 8:
                raise FormatError(f"{path}: is not a safetensors file, or is cut short")
            if length > MAX_HEADER_BYTES:
                allowed = format_bytes(MAX_HEADER_BYTES)
                raise FormatError(f"{path}: its header of {format_bytes(length)} is over the allowed {allowed}")
            header = parse_json(file.read(length))
    except ValueError:
        raise FormatError(f"{path}: is not a safetensors file (its header is no JSON)") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: is not a safetensors file (its header is no JSON object)")
    try:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [int(entry["data_offsets"][1]) for entry in entries]
        if any(math.prod(max(1, int(side)) for side in entry["shape"]) > MAX_ELEMENTS for entry in entries):
            raise OverflowError
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        raise FormatError(f"{path}: is not a safetensors file (its header is damaged)") from None
    if max(ends, default=0) != size - 8 - length:
        raise FormatError(f"{path}: is cut short, or has bytes beyond its last tensor")
    odd = next((name for name in header if len(name) > LONGEST_TENSOR_NAME or not name.isprintable()), None)
    if odd is not None:  # It would appear in messages, and slow down comparisons.
        raise FormatError(f"{path}: a tensor has a name that no tool gives: {one_line(odd, 60)!r}")
    return header


ALIGNMENT = 8
"""Headers are padded with spaces to a multiple of this many bytes, so that the tensors behind them are aligned."""


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return the bytes before the tensors of a safetensors file: the header's length, and the header, padded."""
    content = json.dumps(header, ensure_ascii=False).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return len(content).to_bytes(8, "little") + content


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file. Raises FormatError, FileError."""
    metadata = read_safetensors_header(path).get("__metadata__")
    return {key: text for key, text in metadata.items() if isinstance(text, str)} if isinstance(metadata, dict) else {}


def copy_with_metadata(source: Path, output: Path, changes: Mapping[str, str]) -> None:
    """Copy the safetensors file ``source`` to ``output`` atomically, with ``changes`` to its metadata.

    Hashes of the tensors in the metadata stay valid. Raises FormatError, FileError.
    """
    header = read_safetensors_header(source)
    start = encode_header({**header, "__metadata__": {**read_metadata(source), **changes}})

    def write(temporary: Path) -> None:
        with open(source, "rb") as old, open(temporary, "wb") as new:
            old.seek(8 + int.from_bytes(old.read(8), "little"))
            new.write(start)
            shutil.copyfileobj(old, new)

    write_atomic(output, write)
