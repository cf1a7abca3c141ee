"""Single files of the original layout: the bundled configs that describe one, its marks, and what it lacks.

The configs in ``configs`` state the architectures' sizes as the papers and the released models have them, so that no
hub is asked for them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.diffusion import ZERO_SNR
from sdlora.errors import ModelError
from sdlora.families import FAMILIES
from sdlora.families.detect import detect_file, require_served
from sdlora.families.settings import Model
from sdlora.filesystem.safetensors_header import read_safetensors_header

CONFIGS = Path(__file__).parent / "configs"
"""Folder with one folder per family in diffusers' layout, without weights and vocabularies."""
SCHEDULE_MARKS: Mapping[str, tuple[str, object]] = {
    "v_pred": ("prediction_type", "v_prediction"),
    "ztsnr": (ZERO_SNR, True),
}
"""Entries of the scheduler's config by the name of the empty tensor with which velocity fine-tunes' files mark them."""


def config_folder(family: str, prediction_type: str = "auto") -> Path:
    """Return the folder of the bundled configs for a file of a served ``family``.

    SD 2.x at 512 px (noise) and at 768 px (velocity) have the same tensors: the latter, unless ``epsilon`` is given.
    """
    return CONFIGS / ("sd2-base" if (family, prediction_type) == ("sd2", "epsilon") else family)


def family_of_complete_file(file: Path) -> str:
    """Return the family of ``file``. Raises ModelError if it is not served, or lacks a text encoder or the VAE."""
    family, header = require_served(detect_file(file), file), read_safetensors_header(file)
    prefixes = FAMILIES[family].single_file_prefixes
    missing = [name for name, prefix in prefixes.items() if not any(key.startswith(prefix) for key in header)]
    if missing:
        raise ModelError(
            f"{file}: the part {', '.join(missing)} is missing in it; give a file that holds UNet, VAE and text "
            "encoders, or a diffusers folder"
        )
    return family


def marked_schedule(file: Path) -> dict[str, object]:
    """Return the entries of the scheduler's config that a velocity fine-tune's file marks."""
    header = read_safetensors_header(file)
    return {setting: value for mark, (setting, value) in SCHEDULE_MARKS.items() if mark in header}


def schedule_marks(schedule: Mapping[str, object]) -> list[str]:
    """Return the names of the tensors that mark ``schedule`` in a file, as far as there are such."""
    return [mark for mark, (setting, value) in SCHEDULE_MARKS.items() if schedule.get(setting) == value]


def schedule_of_file(file: Path, model: Model) -> dict[str, Any]:
    """Return a single file's scheduler config: its family's, with its marks, with the settings of ``model``."""
    folder = config_folder(detect_file(file), model.prediction_type)
    usual = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {**usual, **marked_schedule(file), **model.schedule}
