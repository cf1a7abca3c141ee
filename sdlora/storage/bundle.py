"""Zip file of a run to share: its adapter, settings, previews and captions, with no path of this machine."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import tomli_w

from sdlora.config import VERSION, TrainConfig, all_settings
from sdlora.data.concept_values import CONCEPTS, PATHS
from sdlora.data.dataset import caption_files
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.paths import existing_path
from sdlora.filesystem.writing import file_errors, write_atomic
from sdlora.storage.run_folder import Run

PICTURES = "pictures"
"""Folder of the captions in the bundle, and its ``data.folder``: with the images added, the config trains again."""


def write_bundle(run: Run, adapter: Path, output: Path) -> Path:
    """Write the zip file ``output`` from ``run`` and its ``adapter``. Pictures of the data set are not in it.

    Raises FileError where it cannot be written, or captions cannot be read, ConfigError for a damaged config.
    """
    config = portable_config(run.config)
    card = adapter.with_suffix(".json")

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as pack:
            pack.write(adapter, f"{run.name}/{run.name}.safetensors")
            if card in run.regular_files(card.parent, card.name):
                pack.write(card, f"{run.name}/{run.name}.json")
            pack.writestr(f"{run.name}/config.toml", tomli_w.dumps(config))
            for path in run.regular_files(run.samples, "*.png"):
                pack.write(path, f"{run.name}/samples/{path.name}")
            for folder, concept in zip(_folder_names(run.config), run.config.all_concepts, strict=True):
                for name, path in _captions(concept.folder):
                    pack.write(path, f"{run.name}/{folder}/{name}")

    write_atomic(output, write)
    return output


def portable_config(config: TrainConfig) -> dict[str, Any]:
    """Return every setting, with paths relative to the config's own folder; of ``model.base`` the last part alone."""
    values = config.model_dump(mode="json", exclude_none=True)
    for setting in all_settings():
        section, field = setting.name.split(".")
        value = values.get(section, {}).get(field)
        if Path in (setting.field.annotation, *get_args(setting.field.annotation)) and value:
            values[section][field] = Path(value).name
    folders = _folder_names(config)
    values["data"]["folder"] = folders[0]
    for concept, folder in zip(values.get(CONCEPTS, ()), folders, strict=False):
        own = {name: Path(concept[name]).name for name in PATHS if name in concept}
        concept.update(own, folder=folder)
    base = config.model.base
    if base not in BUNDLED and (existing_path(base) or Path(base).is_absolute()):
        values["model"]["base"] = Path(base).name
    return {"version": VERSION, **values}


def _folder_names(config: TrainConfig) -> list[str]:
    """Return the folder in the bundle of each concept's pictures."""
    if not config.concepts:
        return [PICTURES]
    return [f"{PICTURES}-{number}" for number in range(1, len(config.concepts) + 1)]


def _captions(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the caption files of a data set, named below its folder; none if the folder is gone."""
    with file_errors(folder, "read"):
        root = folder.resolve()
        for path in caption_files(folder):
            if path.is_file() and path.resolve().is_relative_to(root):
                yield path.resolve().relative_to(root).as_posix(), path
