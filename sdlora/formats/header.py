"""A file's header changed while its tensors stay as they are, byte for byte. Needs no torch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from sdlora.files import read_safetensors_header, write_atomic

ALIGNMENT = 8
"""Headers are padded with spaces to a multiple of this many bytes, so that the tensors behind them lie aligned."""


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file. Raises FormatError, FileError."""
    said = read_safetensors_header(path).get("__metadata__")
    return {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}


def copy_with_metadata(source: Path, output: Path, changes: Mapping[str, str]) -> None:
    """Write the safetensors file ``source`` to ``output``, whole or not at all, with ``changes`` to its metadata.

    Hashes of the tensors, which the metadata may hold, stay true. Raises FormatError, FileError.
    """
    header = read_safetensors_header(source)
    text = json.dumps({**header, "__metadata__": {**read_metadata(source), **changes}}, ensure_ascii=False)
    content = text.encode()
    content += b" " * (-len(content) % ALIGNMENT)

    def write(temporary: Path) -> None:
        with open(source, "rb") as old, open(temporary, "wb") as new:
            old.seek(8 + int.from_bytes(old.read(8), "little"))
            new.write(len(content).to_bytes(8, "little") + content)
            shutil.copyfileobj(old, new)

    write_atomic(output, write)
