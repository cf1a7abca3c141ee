"""Header of adapter files: the entries that A1111, ComfyUI, kohya's scripts and trigger-word tools look for.

All values are strings. ``ss_*`` are sd-scripts' names (train_network.py), ``modelspec.*`` are
github.com/Stability-AI/ModelSpec 1.0.1. Unknown values are omitted: nothing is made up.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sdlora.adapters.state import ModuleState
from sdlora.families import FAMILIES
from sdlora.families.adapter_naming import BaseNames

PEFT_HEADER = "lora_adapter_metadata"
"""Entry with PEFT's configurations in diffusers' files; diffusers refuses a file that has this and kohya's alphas."""

WEIGHT = "modelspec.lora_default_weight"
"""Entry with the recommended scale, as SwarmUI reads it (A1111 has it in the side file)."""


def base_names(family: str, prediction_type: str) -> BaseNames | None:
    """Return a family's names for its bases of this prediction type; None if they are unknown."""
    return FAMILIES[family].adapter_naming.bases.get(prediction_type) if family in FAMILIES else None


def base_metadata(family: str, prediction_type: str) -> dict[str, str]:
    """Return the entries by which sd-scripts and A1111 know the base."""
    base = base_names(family, prediction_type)
    v2 = family in FAMILIES and FAMILIES[family].adapter_naming.v2
    return ({"ss_base_model_version": base.version} if base else {}) | {"ss_v2": str(v2)}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of an adapter, in true values. None or empty values are unknown and not written."""

    name: str
    """Name of the adapter, also its title and its alias in A1111's prompts."""
    family: str
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    base: str
    """Name of the base model."""
    triggers: Sequence[str] = ()
    learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    optimizer: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    """Number of optimizer steps done."""
    epochs: int | None = None
    batch_size: int | None = None
    gradient_accumulation: int | None = None
    images: int | None = None
    """Number of training images, counting repeats as sd-scripts does."""
    class_images: int | None = None
    resolution: tuple[int, int] | None = None
    """Width and height in pixels."""
    seed: int | None = None
    clip_skip: int | None = None
    """Text-encoder layer that was read, if not the one that the base was trained with."""
    mixed_precision: str | None = None
    noise_offset: float | None = None
    min_snr_gamma: float | None = None
    prior_weight: float | None = None
    started: float | None = None
    """Seconds since the epoch."""
    finished: float | None = None
    folders: Mapping[str, tuple[int, int]] | None = None
    """Repeats of each image and number of images, by folder name."""
    buckets: Mapping[tuple[int, int], int] | None = None
    """Number of images, counting repeats, by width and height in pixels."""
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    """Number of occurrences of each part of a caption, by folder name."""


def provenance_metadata(provenance: Provenance) -> dict[str, str]:
    """Return the metadata of ``provenance``. Writing a file adds the hashes and what the tensors tell."""
    return {
        key: text for key, text in (_training(provenance) | _modelspec(provenance)).items() if text not in ("", None)
    }


def _training(p: Provenance) -> dict[str, str | None]:
    return {
        "ss_output_name": p.name,
        "ss_sd_model_name": p.base,
        **base_metadata(p.family, p.prediction_type),
        "ss_learning_rate": _text(p.learning_rate),
        "ss_unet_lr": _text(p.learning_rate),
        "ss_text_encoder_lr": _text(p.text_encoder_learning_rate),
        "ss_optimizer": p.optimizer,
        "ss_lr_scheduler": p.scheduler,
        "ss_steps": _text(p.steps),
        "ss_max_train_steps": _text(p.steps),
        "ss_num_epochs": _text(p.epochs),
        "ss_total_batch_size": _text(p.batch_size),
        "ss_gradient_accumulation_steps": _text(p.gradient_accumulation),
        "ss_num_train_images": _text(p.images),
        "ss_num_reg_images": _text(p.class_images),
        "ss_resolution": _text(p.resolution),
        "ss_seed": _text(p.seed),
        "ss_clip_skip": _text(p.clip_skip),
        "ss_mixed_precision": p.mixed_precision,
        "ss_noise_offset": _text(p.noise_offset),
        "ss_min_snr_gamma": _text(p.min_snr_gamma),
        "ss_zero_terminal_snr": str(p.zero_terminal_snr),
        "ss_prior_loss_weight": _text(p.prior_weight),
        "ss_training_started_at": _text(p.started),
        "ss_training_finished_at": _text(p.finished),
        "ss_dataset_dirs": _json(
            p.folders and {name: {"n_repeats": repeats, "img_count": n} for name, (repeats, n) in p.folders.items()}
        ),
        "ss_bucket_info": _json(
            p.buckets
            and {
                "buckets": {
                    str(i): {"resolution": list(size), "count": n} for i, (size, n) in enumerate(p.buckets.items())
                }
            }
        ),
        "ss_tag_frequency": _json(p.tag_frequency),
    }


def _modelspec(p: Provenance) -> dict[str, str | None]:
    base = base_names(p.family, p.prediction_type)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base.architecture}/lora" if base else None,
        "modelspec.implementation": "diffusers",
        "modelspec.title": p.name,
        "modelspec.resolution": p.resolution and f"{p.resolution[0]}x{p.resolution[1]}",
        "modelspec.date": datetime.fromtimestamp(int(p.finished), UTC).isoformat() if p.finished else None,
        "modelspec.trigger_phrase": ", ".join(p.triggers),
        "modelspec.prediction_type": "v" if p.prediction_type == "v_prediction" else p.prediction_type,
    }


def network_metadata(modules: Mapping[str, ModuleState], family: str) -> dict[str, str]:
    """Return what the tensors tell: the most common rank and alpha, and those of the k x k convolutions."""
    linear = {path: module for path, module in modules.items() if not _is_conv(module)}
    conv = {path: module for path, module in modules.items() if _is_conv(module)}
    (rank, alpha), of_conv = commonest(linear or conv), commonest(conv)
    method = Counter(module.method for module in modules.values()).most_common(1)[0][0]
    plain = method == "lora" and not any("mid" in module.tensors for module in modules.values())
    arguments = {} if plain else {"algo": "lora" if method == "dora" else method}
    arguments |= {"dora_wd": "True"} if method == "dora" else {}
    arguments |= {"conv_dim": str(of_conv[0]), "conv_alpha": str(of_conv[1])} if of_conv[0] else {}
    return {
        "ss_network_module": FAMILIES[family].adapter_naming.network_module if plain else "lycoris.kohya",
        **({"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)} if rank else {}),
        "ss_network_args": json.dumps(arguments),
    }


def commonest(modules: Mapping[str, ModuleState]) -> tuple[int | None, float]:
    """Return the most common rank and alpha of the layers; no rank if no layer has one."""
    pairs = Counter((module.rank, module.alpha) for module in modules.values() if module.rank)
    return pairs.most_common(1)[0][0] if pairs else (None, 0.0)


def weight_metadata(weight: float) -> dict[str, str]:
    """Return the entries that recommend a scale."""
    return {"modelspec.usage_hint": f"Preferred weight {weight:g}", WEIGHT: f"{weight:g}"}


def a1111_card(provenance: Provenance) -> str:
    """Return the text of ``NAME.json``, which A1111 reads beside ``NAME.safetensors`` for its card."""
    base = base_names(provenance.family, provenance.prediction_type)
    return build_a1111_card(base.sd_version if base else "Unknown", ", ".join(provenance.triggers))


def build_a1111_card(sd_version: str, triggers: str, weight: float = 1.0) -> str:
    """Build A1111's card from the version of Stable Diffusion, the trigger words, and the preferred weight."""
    fields = {
        "description": "",
        "sd version": sd_version,
        "activation text": triggers,
        "preferred weight": weight,
        "negative text": "",
        "notes": "",
    }
    return json.dumps(fields, ensure_ascii=False, indent=4) + "\n"


def sd_version(metadata: Mapping[str, str]) -> str:
    """Return the name in A1111's side files for the base of an adapter with this header."""
    version = metadata.get("ss_base_model_version")
    bases = (base for family in FAMILIES.values() for base in family.adapter_naming.bases.values())
    return next((base.sd_version for base in bases if base.version == version), "Unknown")


def _is_conv(module: ModuleState) -> bool:
    return any(
        side != 1 for name in ("down", "mid") if name in module.tensors for side in module.tensors[name].shape[2:]
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _json(value: object) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None
