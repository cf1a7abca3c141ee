"""Infer the base model that an adapter was trained on: its family and its noise schedule."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.adapters.compatibility import cross_attention_width, input_widths
from sdlora.adapters.state import AdapterState
from sdlora.diffusion import ZERO_SNR
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES, family_components
from sdlora.families.adapter_naming import AdapterNaming
from sdlora.filesystem.safetensors_header import read_safetensors_header


def infer_family(state: AdapterState) -> str:
    """Return the family of bases that an adapter is for: by its components, layers, widths, or header; empty if none
    tells.
    """
    return infer_family_from_header(input_widths(state), state.metadata)


def naming_family(state: AdapterState) -> str:
    """Return the family whose names an adapter's file has: its own; if that is not known, the first with its layers."""
    return infer_family(state) or next(_candidates(state.modules), next(iter(FAMILIES)))


def _candidates(paths: Iterable[str]) -> Iterator[str]:
    """Yield the families that have all components of layers at ``paths``."""
    named = {path.partition(".")[0] for path in paths}
    return (name for name, family in FAMILIES.items() if named <= family.components.keys())


def infer_family_from_header(widths: Mapping[str, int], metadata: Mapping[str, str], keys: Collection[str] = ()) -> str:
    """Infer the family from the input widths of a file's layers, by path, its metadata, and its ``keys``."""
    families = [*_candidates(widths)]
    if len(families) == 1:
        return families[0]
    version = metadata.get("ss_base_model_version", "")
    by_width = {FAMILIES[name].adapter_naming.text_width: name for name in reversed(families)}

    def first(matches: Callable[[AdapterNaming], object]) -> str:
        return next((name for name in families if matches(FAMILIES[name].adapter_naming)), "")

    return (
        first(lambda naming: any(key.startswith(naming.own_keys) for key in keys))
        or first(lambda naming: naming.own_layers and any(re.fullmatch(naming.own_layers, path) for path in widths))
        or by_width.get(cross_attention_width(widths) or 0, "")
        or first(lambda naming: naming.version_prefix and version.startswith(naming.version_prefix))
        or next((by_width[width] for width in _text_widths(widths) if width in by_width), "")
    )


def _text_widths(widths: Mapping[str, int]) -> list[int]:
    """Return the widths of text that a file's layers read, those of text encoders among them."""
    components = family_components()
    named = ((components.get(path.partition(".")[0]), path, width) for path, width in widths.items())
    return sorted({width for part, path, width in named if part and path.endswith(part.layers.text_inputs)})


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
