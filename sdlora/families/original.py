"""Single files of the original layout: which bundled configs describe one, what it tells of itself, what it lacks.

The configs in ``configs`` state the architectures' sizes as the papers and the released models have them, so that no
hub is asked for them.
"""

from pathlib import Path

from sdlora.errors import ModelError
from sdlora.families.detect import detect_file, served
from sdlora.files import read_safetensors_header

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


def config_of(family: str, prediction_type: str = "auto") -> Path:
    """The bundled configs for a file of ``family``, which is served.

    SD 2.x at 512 px (noise) and at 768 px (velocity) have the same tensors: the latter, unless ``epsilon`` is said.
    """
    return CONFIGS / ("sd2-base" if (family, prediction_type) == ("sd2", "epsilon") else family)


def whole_family(file: Path) -> str:
    """The family of ``file``. Raises ModelError if it is not served, or if a text encoder or the VAE is missing."""
    family, header = served(detect_file(file), file), read_safetensors_header(file)
    parts: dict[str, str | tuple[str, ...]] = {"vae": VAE, **TEXT[family]}
    missing = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in header)]
    if missing:
        raise ModelError(
            f"{file}: the part {', '.join(missing)} is missing in it; give a file that holds UNet, VAE and text "
            "encoders, or a diffusers folder"
        )
    return family


def told(file: Path) -> dict[str, object]:
    """What a velocity fine-tune's file says of its schedule, by tensors of these names that hold nothing."""
    header = read_safetensors_header(file)
    velocity = {"prediction_type": "v_prediction"} if "v_pred" in header else {}
    return {**velocity, **({"rescale_betas_zero_snr": True} if "ztsnr" in header else {})}
