"""Whether adapter files go into one base model, by their headers alone: no tensor is read, and torch is not needed."""

from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.files import read_safetensors_header


def header_widths(path: Path) -> dict[str, tuple[int, ...]]:
    """What each layer of an adapter reads or gives, by key: the shape without the rank. Empty if it cannot be read."""
    try:
        header = read_safetensors_header(path)
    except SdloraError:  # Whoever loads it says better what is wrong.
        return {}
    found = ((key, entry.get("shape")) for key, entry in header.items() if key != "__metadata__")
    shapes = {key: tuple(shape) for key, shape in found if isinstance(shape, list)}
    inputs, outputs = ("lora_down", "lora_A", "hada_w1_b"), ("lora_up", "lora_B", "hada_w1_a")
    down = {key: shape[1:] for key, shape in shapes.items() if any(mark in key for mark in inputs)}
    up = {key: shape[:1] for key, shape in shapes.items() if any(mark in key for mark in outputs)}
    whole = {key: shape for key, shape in shapes.items() if key.endswith((".diff", ".dora_scale"))}
    return down | up | whole


def incompatible(one: Path, other: Path) -> bool:
    """Whether two adapters name a layer that is of another width in each: no base can take both."""
    ours, theirs = header_widths(one), header_widths(other)
    return any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys())
