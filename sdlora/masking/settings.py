"""Settings of masks that a model makes. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from sdlora.data.settings import Fraction
from sdlora.families.known_words import with_article
from sdlora.section import Section

HUB_SEGMENTER = "CIDAS/clipseg-rd64-refined"
"""Segmenter that is asked with words. Fetched once, when it is used first."""
FACES = "faces"
"""Name of the segmenter that looks for faces."""
Mode = Literal["empty", "replace"]


class MaskSettings(Section):
    """Masks that a model makes for training images."""

    model: str = HUB_SEGMENTER
    """Model that makes the masks: the hub id or the folder of a CLIPSeg, an ONNX file of rembg's (`u2net.onnx`,
    `isnet-general-use.onnx`) or its folder, or `faces`."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    mode: Mode = "empty"
    """Treatment of masks that are there: they stay, and only pictures without one get one (`empty`); or they are
    replaced (`replace`)."""

    words: str = ""
    """Words for a CLIPSeg to look for, such as `a dog`; several things are parted by commas. If empty, `a` and the
    class name."""

    class_name: str = ""
    """Class of the subject, such as `dog`. Where it is `cat`, `faces` looks for faces of cats."""

    threshold: Fraction = 0.3
    """Probability from which a place belongs to the mask."""

    soft: bool = False
    """Keep the model's probabilities as weights, instead of full weight for all of the mask."""

    grow: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Width by which a mask grows on all sides, as a share of the picture's longer side."""

    feather: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Width over which a mask's edge fades, as a share of the picture's longer side."""

    face_margin: Annotated[float, Field(ge=0, le=3)] = 0.4
    """Margin around a face on each side, as a share of its own size, so that hair and chin belong to it."""

    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Images that the model sees at once."""

    device: str = "auto"
    """Device that the model runs on: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the things that a CLIPSeg looks for, each by itself; empty if nothing names one."""
        words = tuple(word for part in self.words.split(",") if (word := " ".join(part.split())))
        name = " ".join(self.class_name.split())
        return words or ((with_article(name),) if name else ())
