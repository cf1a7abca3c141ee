"""What a diffusers folder may hold: data alone, and its own.

The libraries that load it can be told by its files to import modules, fetch kernels, follow links and read files of
other kinds. Nothing of that has a place in Stable Diffusion, so it is refused before any of them looks.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.errors import FileError, FormatError, ModelError
from sdlora.filesystem.paths import path_problem, safe_name
from sdlora.filesystem.reading import read_json
from sdlora.formatting import one_line

INDEX = "model_index.json"
CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
"""The library and the classes of each part with weights or words."""
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)
"""Of parts that are not loaded, or of which the config alone is: schedulers, safety checkers, image encoders."""
CODE = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation")
"""Entries of configs that have a library run code which the model brings, names or needs."""
WORDS = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "config.json",
)  # fmt: skip
"""Of a tokenizer's files those that are read."""
SHARDS = ".safetensors.index.json"
MOST_LAYERS, MOST_LEVELS, MOST = 256, 32, 1 << 20
"""Of a config of a model: layers of a part or a level, levels, and the largest other whole number. Beyond, building the
layers alone would take all memory."""


def read_index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says. Raises ModelError if there is none, or it cannot be read."""
    if not (folder / INDEX).exists():
        raise ModelError(f"{folder}: has no {INDEX}, so it is no diffusers model")
    return read_config(folder / INDEX)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises ModelError if it cannot be read, or says anything else."""
    try:
        value = read_json(path)
    except (FileError, FormatError) as error:
        raise ModelError(str(error)) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is no JSON object")
    return value


def require_data_only(folder: Path, index: Mapping[str, Any]) -> None:
    """Raises ModelError for a diffusers ``folder`` that names code, or reaches out of itself."""
    _require_own(folder / INDEX, folder)
    if not isinstance(index.get("_class_name", ""), str):
        raise ModelError(f"{folder}: its {INDEX} names a pipeline of its own, whose code is never run")
    for name, named in index.items():
        if isinstance(named, list):
            _require_known(folder, name, *(named if len(named) == 2 else (named, "")))
    for part in (*CLASSES, "scheduler"):
        _require_own(folder / part, folder)
        for path in sorted((folder / part).iterdir()) if (folder / part).is_dir() else ():
            _require_own(path, folder)
            if path.suffix == ".json":
                _require_data(path)


def require_data_only_tokenizer(folder: Path) -> None:
    """Raises ModelError for a tokenizer's ``folder`` whose files name code, or are not its own."""
    for path in (folder / name for name in WORDS if (folder / name).exists()):
        _require_own(path, folder)
        _require_data(path)


def _require_known(folder: Path, part: str, library: Any, kind: Any) -> None:
    """Raises ModelError unless what ``model_index.json`` has for a part is a class that is loaded here, or left out."""
    wanted, kinds = CLASSES.get(part, ("", ()))
    known = library == wanted and kind in kinds if kinds else library in LIBRARIES
    shadowed = known and library and (folder / safe_name(part) / f"{library}.py").exists()
    if not known or shadowed:
        said, own = one_line(f"{library}.{kind}", 60), " or ".join(kinds) or "diffusers' own classes"
        remedy = f"of code only {own} is run here, never the model's own"
        raise ModelError(f"{folder}: its {INDEX} names {said} for the part {one_line(part, 40)}; {remedy}")


def _require_own(path: Path, folder: Path) -> None:
    if (path.exists() or path.is_symlink()) and (reason := path_problem(path, folder)):
        raise ModelError(f"{path}: {reason}")


def _require_data(path: Path) -> None:
    """Raises ModelError for a part's JSON file that names code, files elsewhere, or more layers than any model has."""
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
    if asks := next((name for name in CODE if config.get(name)), ""):
        raise ModelError(f"{path}: its {asks} asks for code beside diffusers' own, which is never run; remove it")
    if path.name == "config.json":
        for name, number in _numbers(config):
            if number > (MOST_LAYERS if "layers" in name else MOST):
                raise ModelError(f"{path}: {one_line(name, 40)} = {number:.4g} is more than any model has")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a config, at any depth, by their entries' names; of lists that are too long an endless one."""
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
