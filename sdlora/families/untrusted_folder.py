"""Checks of a stranger's diffusers or transformers folder: it may hold data alone, and nothing from outside of it.

Its files can have the libraries that load it import modules, fetch kernels, follow links and read files of other kinds.
No base model needs any of that, so it is refused before a library opens the folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.errors import FileError, FormatError, ModelError
from sdlora.families import family_components
from sdlora.families.base import Component
from sdlora.filesystem.paths import path_problem, safe_name
from sdlora.filesystem.reading import read_json
from sdlora.formatting import one_line

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)
"""Libraries of parts that are no family's components: schedulers, of which the config alone is read, and safety
checkers and image encoders, which are not loaded."""
CODE = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation")
"""Entries of configs that have a library run code which the model brings, names or needs."""
TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "config.json",
)  # fmt: skip
"""Files of a tokenizer that are read."""
SHARDS = ".safetensors.index.json"
MOST_LAYERS, MOST_LEVELS, MOST = 256, 32, 1 << 20
"""Limits in a model's config: layers of a part or a level, levels, and any other whole number.

Beyond them, building the layers alone would take all memory."""


def read_index(folder: Path) -> dict[str, Any]:
    """Return the contents of ``model_index.json``. Raises ModelError if there is none, or it cannot be read."""
    if not (folder / INDEX).exists():
        raise ModelError(f"{folder}: has no {INDEX}, so it is no diffusers model")
    return read_config(folder / INDEX)


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError if it cannot be read, or is anything else."""
    try:
        value = read_json(path)
    except (FileError, FormatError) as error:
        raise ModelError(str(error)) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is no JSON object")
    return value


def require_data_only(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise ModelError for a diffusers ``folder`` that names code, or reaches out of itself."""
    components = family_components()
    _require_inside(folder / INDEX, folder)
    if not isinstance(index.get("_class_name", ""), str):
        raise ModelError(f"{folder}: its {INDEX} names a pipeline of its own, whose code is never run")
    for name, named in index.items():
        if isinstance(named, list):
            library, kind = named if len(named) == 2 else (named, "")
            _require_served_class(folder, name, library, kind, components.get(name))
    for part in (*components, "scheduler"):
        _require_inside(folder / part, folder)
        for path in sorted((folder / part).iterdir()) if (folder / part).is_dir() else ():
            _require_inside(path, folder)
            if path.suffix == ".json":
                _require_data(path)


def require_data_only_tokenizer(folder: Path) -> None:
    """Raise ModelError for a tokenizer's ``folder`` whose files name code, or lie elsewhere."""
    for path in (folder / name for name in TOKENIZER_FILES if (folder / name).exists()):
        _require_inside(path, folder)
        _require_data(path)


def require_data_only_model(folder: Path) -> None:
    """Raise ModelError for a transformers model's ``folder`` that names code, or reaches out of itself."""
    for path in sorted(folder.iterdir()):
        _require_inside(path, folder)
        if path.suffix == ".json":
            _require_data(path)


def _require_served_class(folder: Path, part: str, library: Any, kind: Any, component: Component | None) -> None:
    """Raise ModelError unless the index names a class of ``component`` for a part, or one that is not loaded."""
    if component is None:
        served, classes = library in LIBRARIES, "diffusers' own classes"
    else:
        served, classes = library == component.library and kind in component.classes, " or ".join(component.classes)
    shadowed = served and library and (folder / safe_name(part) / f"{library}.py").exists()
    if not served or shadowed:
        named = one_line(f"{library}.{kind}", 60)
        remedy = f"of code only {classes} is run here, never the model's own"
        raise ModelError(f"{folder}: its {INDEX} names {named} for the part {one_line(part, 40)}; {remedy}")


def _require_inside(path: Path, folder: Path) -> None:
    if (path.exists() or path.is_symlink()) and (reason := path_problem(path, folder)):
        raise ModelError(f"{path}: {reason}")


def _require_data(path: Path) -> None:
    """Raise ModelError for a part's JSON file that names code, files elsewhere, or more layers than any model has."""
    if path.name == "adapter_config.json":
        raise ModelError(f"{path}: an adapter beside the weights would lead to other ones; move it away")
    if path.name.endswith(SHARDS):
        named = read_config(path).get("weight_map")
        files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else [""]
        odd = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
        if odd:
            raise ModelError(f"{path}: names {one_line(odd[0], 60)!r}, which is no .safetensors file beside it")
    if path.name not in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        return
    config = read_config(path)
    if entry := next((name for name in CODE if config.get(name)), ""):
        raise ModelError(f"{path}: its {entry} asks for code beside diffusers' own, which is never run; remove it")
    if path.name == "config.json":
        for name, number in _numbers(config):
            if number > (MOST_LAYERS if "layers" in name else MOST):
                raise ModelError(f"{path}: {one_line(name, 40)} = {number:.4g} is more than any model has")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a config, at any depth, with their entries' names; infinity for a list that is too long."""
    waiting: list[tuple[str, Any]] = [*config.items()]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, int | float):
            yield name, float(min(abs(value), 2 * MOST))
        elif isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            yield name, 0.0 if len(value) <= MOST_LEVELS else float("inf")
            waiting += [(name, item) for item in value[:MOST_LEVELS]]
