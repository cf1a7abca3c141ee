"""Single files of the original layout: which bundled configs describe one, what it tells of itself, what it lacks.

The configs in ``configs`` state the architectures' sizes as the papers and the released models have them, so that no
hub is asked for them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.diffusion import ZERO_SNR
from sdlora.errors import ModelError
from sdlora.families.detect import detect_file, require_served
from sdlora.families.settings import Model
from sdlora.filesystem.safetensors_header import read_safetensors_header

CONFIGS = Path(__file__).parent / "configs"
"""A folder a family, as diffusers lays them out, without weights and vocabularies."""
VAE = ("first_stage_model.", "vae.")
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer.text_model."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""What the names of the text encoders' tensors begin with, by family."""
SCHEDULE_MARKS: Mapping[str, tuple[str, object]] = {
    "v_pred": ("prediction_type", "v_prediction"),
    "ztsnr": (ZERO_SNR, True),
}
"""Tensors that hold nothing: by their names, files of velocity fine-tunes tell an entry of their scheduler's config."""


def config_folder(family: str, prediction_type: str = "auto") -> Path:
    """The bundled configs for a file of ``family``, which is served.

    SD 2.x at 512 px (noise) and at 768 px (velocity) have the same tensors: the latter, unless ``epsilon`` is said.
    """
    return CONFIGS / ("sd2-base" if (family, prediction_type) == ("sd2", "epsilon") else family)


def family_of_complete_file(file: Path) -> str:
    """The family of ``file``. Raises ModelError if it is not served, or if a text encoder or the VAE is missing."""
    family, header = require_served(detect_file(file), file), read_safetensors_header(file)
    parts: dict[str, str | tuple[str, ...]] = {"vae": VAE, **TEXT[family]}
    missing = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in header)]
    if missing:
        raise ModelError(
            f"{file}: the part {', '.join(missing)} is missing in it; give a file that holds UNet, VAE and text "
            "encoders, or a diffusers folder"
        )
    return family


def marked_schedule(file: Path) -> dict[str, object]:
    """What a velocity fine-tune's file says of its schedule."""
    header = read_safetensors_header(file)
    return {setting: value for mark, (setting, value) in SCHEDULE_MARKS.items() if mark in header}


def schedule_marks(schedule: Mapping[str, object]) -> list[str]:
    """The names of the tensors by which a file says ``schedule``, as far as there are such."""
    return [mark for mark, (setting, value) in SCHEDULE_MARKS.items() if schedule.get(setting) == value]


def schedule_of_file(file: Path, model: Model) -> dict[str, Any]:
    """The scheduler's config of a single file: its family's, what it tells itself, what ``model`` says of it."""
    folder = config_folder(detect_file(file), model.prediction_type)
    usual = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {**usual, **marked_schedule(file), **model.schedule}
