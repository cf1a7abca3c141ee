"""Settings of the base model."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from sdlora.diffusion import ZERO_SNR
from sdlora.filesystem.paths import trimmed_name
from sdlora.section import Section


def trimmed_base(base: str) -> str:
    """Return what names a base model without spaces and dots at its end, unless a file or folder has them."""
    trimmed = trimmed_name(base)
    return base if base == trimmed or os.path.lexists(os.path.expanduser(base)) else trimmed


BaseName = Annotated[str, AfterValidator(trimmed_base)]


class Model(Section):
    """Base model that the adapter is trained on."""

    base: BaseName = "pocket"
    """The base model: `pocket`, a name in a models folder, a diffusers folder, one `.safetensors` file, or a hub id."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    variant: str | None = None
    """File variant of a folder or hub id, such as `fp16`."""

    tokenizer: Path | None = None
    """Folder with CLIP's `vocab.json` and `merges.txt`, for a single file. The hub's, fetched once, if not set."""

    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """Override the prediction type, noise or velocity, if the base model's scheduler settings are wrong; `auto` follows
    them."""

    quantize: Literal["int8", "nf4"] | None = None
    """Quantize the frozen linear layers of the UNet to `int8` or `nf4` (QLoRA's 4 bits; needs bitsandbytes): a half or
    a quarter of their memory, for some time and a rounded base. Adapter files stay the same."""

    zero_terminal_snr: Literal["auto", "on", "off"] = "auto"
    """Override whether the base's noise schedule ends in pure noise (arXiv:2305.08891); `auto` follows its own
    settings."""

    @property
    def schedule(self) -> dict[str, object]:
        """Entries of the scheduler's config that these settings replace."""
        prediction = {} if self.prediction_type == "auto" else {"prediction_type": self.prediction_type}
        snr = {} if self.zero_terminal_snr == "auto" else {ZERO_SNR: self.zero_terminal_snr == "on"}
        return {**prediction, **snr}


def base_settings(model: "Model") -> dict[str, Any]:
    """Return ``GenerationRequest.base_settings`` of ``model``.

    Images are generated with the unquantized base, also for an adapter that was trained on a quantized one.
    """
    return model.model_dump(mode="json", exclude={"base", "quantize"}, exclude_defaults=True)
