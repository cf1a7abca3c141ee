"""PEFT's folders on disk: read as untrusted, written atomically."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdlora.adapters.state import AdapterState
from sdlora.errors import FileError, FormatError
from sdlora.families import adaptable_components
from sdlora.filesystem.paths import path_problem
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.filesystem.writing import rename_new
from sdlora.formats import peft
from sdlora.formats.checked_tensors import AdapterContents, load_checked_tensors
from sdlora.formats.infer_base import naming_family
from sdlora.formats.metadata import network_metadata


def is_peft_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder that PEFT or ``write_peft_folder`` wrote."""
    return path.is_dir() and bool(_parts(path))


def open_peft_folder(path: Path) -> AdapterContents:
    """Read the folder at ``path``: one component's folder, or one with such folders by component in it.

    Raises FormatError if it is damaged, of an unsupported kind, or links out of itself; FileError if it cannot be read.
    """
    parts: dict[str, peft.PeftComponent] = {}
    types: Counter[str] = Counter()
    unknown: list[str] = []
    metadata: dict[str, str] = {}
    for component, folder in _parts(path).items():
        _require_inside(path, folder)
        found = load_checked_tensors(folder / peft.TENSORS, lambda key, component=component: peft.parse(component, key))  # type: ignore[misc]
        types.update(found.types)
        unknown += found.unknown
        metadata |= found.metadata
        parts[component] = peft.PeftComponent(found.tensors, _config(folder / peft.CONFIG))
    if not types:
        raise FormatError(f"{path}: holds no tensor that is known here")
    try:
        state = peft.read(parts)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    metadata.pop("format", None)
    return AdapterContents(
        AdapterState(state.method, state.modules, metadata), "peft", unknown, types.most_common(1)[0][0]
    )


def write_peft_folder(
    path: Path, parts: Mapping[str, peft.PeftComponent], state: AdapterState, check: Callable[[Path], None]
) -> None:
    """Write the folders of ``parts`` into the new folder ``path``; ``check`` gets it before it has that name.

    Raises FileError if it cannot be written.
    """
    from safetensors.torch import save

    header = {**state.metadata, **network_metadata(state.modules, naming_family(state)), "format": "pt"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as beside:
            for component, part in parts.items():
                folder = Path(beside, "peft", component)
                folder.mkdir(parents=True)
                (folder / peft.TENSORS).write_bytes(save(dict(part.tensors), header))
                (folder / peft.CONFIG).write_text(json.dumps(part.config, indent=2) + "\n", encoding="utf-8")
            check(Path(beside, "peft"))
            rename_new(Path(beside, "peft"), path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error


def _parts(path: Path) -> dict[str, Path]:
    """Return the folder of each component below ``path``."""
    if (path / peft.CONFIG).is_file():
        component = path.name if path.name in adaptable_components() else peft.component_of(_keys(path / peft.TENSORS))
        return {component: path}
    return {name: path / name for name in adaptable_components() if (path / name / peft.CONFIG).is_file()}


def _keys(file: Path) -> list[str]:
    return list(read_safetensors_header(file))


def _require_inside(root: Path, folder: Path) -> None:
    """Raise FormatError for a component's ``folder`` that is, or has a file that is, outside ``root``."""
    for path in (folder, folder / peft.CONFIG, folder / peft.TENSORS):
        if path.exists() and (reason := path_problem(path, root)):
            raise FormatError(f"{path}: {reason}")


def _config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict):
        raise FormatError(f"{file}: is no JSON object")
    return config
