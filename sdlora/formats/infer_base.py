"""Infer the base model that an adapter was trained on: its family and its noise schedule."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sdlora.adapters.compatibility import cross_attention_width, input_widths
from sdlora.adapters.state import AdapterState
from sdlora.diffusion import ZERO_SNR
from sdlora.errors import SdloraError
from sdlora.filesystem.safetensors_header import read_safetensors_header

FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
DEEP = ".transformer_blocks.1."
"""Part of paths that only SDXL's UNet has: other families' attentions have one such block each."""
FAMILY_BY_VERSION = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl"}


def infer_family(state: AdapterState) -> str:
    """Return the family of bases that an adapter is for: by the text width, its components, or its header."""
    return infer_family_from_header(input_widths(state), state.metadata)


def infer_family_from_header(widths: Mapping[str, int], metadata: Mapping[str, str]) -> str:
    """Infer the family from the input widths of a file's layers, by path, and its metadata."""
    if any(path.startswith("text_encoder_2.") or DEEP in path for path in widths):
        return "sdxl"
    if family := FAMILY_BY_WIDTH.get(cross_attention_width(widths) or 0):
        return family
    version = metadata.get("ss_base_model_version", "")
    if family := next((name for start, name in FAMILY_BY_VERSION.items() if version.startswith(start)), ""):
        return family
    own = {width for path, width in widths.items() if path.endswith(".q_proj")}
    return next((FAMILY_BY_WIDTH[width] for width in sorted(own) if width in FAMILY_BY_WIDTH), "")


def header_widths(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the size that each layer of an adapter reads or returns, by key: the shape without the rank. Empty if
    unreadable.
    """
    try:
        header = read_safetensors_header(path)
    except SdloraError:  # Loading it gives a better message.
        return {}
    found = ((key, entry.get("shape")) for key, entry in header.items() if key != "__metadata__")
    shapes = {key: tuple(shape) for key, shape in found if isinstance(shape, list)}
    inputs, outputs = ("lora_down", "lora_A", "hada_w1_b"), ("lora_up", "lora_B", "hada_w1_a")
    down = {key: shape[1:] for key, shape in shapes.items() if any(mark in key for mark in inputs)}
    up = {key: shape[:1] for key, shape in shapes.items() if any(mark in key for mark in outputs)}
    full = {key: shape for key, shape in shapes.items() if key.endswith((".diff", ".dora_scale"))}
    return down | up | full


def incompatible(one: Path, other: Path) -> bool:
    """Return whether two adapters name a layer of different widths: then no base can take both."""
    ours, theirs = header_widths(one), header_widths(other)
    return any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys())


PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}
"""ModelSpec's words for the prediction type, and diffusers'."""
SWITCH = {"True": "on", "False": "off"}


def trained_schedule(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what an adapter's header tells of the base in training, by the names of ``Model``'s settings."""
    prediction = PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))
    zero_snr = SWITCH.get(metadata.get("ss_zero_terminal_snr", ""))
    found = {"prediction_type": prediction, "zero_terminal_snr": zero_snr}
    return {name: value for name, value in found.items() if value}


def schedule_mismatch(
    name: str, metadata: Mapping[str, str], scheduler_config: Mapping[str, Any], overrides: Collection[str] = ()
) -> str:
    """Describe in one sentence how the schedule that adapter ``name`` was trained with differs from the base's; empty
    if not.

    ``overrides`` are the settings that a person has set: they are not compared.
    """
    zero_snr = SWITCH[str(bool(scheduler_config.get(ZERO_SNR)))]
    base = {"prediction_type": scheduler_config.get("prediction_type", "epsilon"), "zero_terminal_snr": zero_snr}
    trained = {
        key: value for key, value in trained_schedule(metadata).items() if key not in overrides and value != base[key]
    }
    if not trained:
        return ""
    theirs, ours = (" and ".join(f"{key} {values[key]}" for key in trained) for values in (trained, base))
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in trained.items())
    return (
        f"adapter {name!r} was trained with {theirs}, and the base is taken to have {ours}; if its pictures are wrong, "
        f"give {flags} (on the page: Advanced)"
    )
