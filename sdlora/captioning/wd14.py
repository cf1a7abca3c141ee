"""WD14 taggers: tags of a booru for drawings, by an ONNX model and the table of its tags."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image

from sdlora.captioning.caption_text import cut_tags
from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.captioning.sources import TAGS
from sdlora.errors import ModelError, SdloraError
from sdlora.filesystem.paths import path_problem
from sdlora.filesystem.reading import read_text
from sdlora.formatting import first_line, one_line
from sdlora.vision.onnx_session import open_onnx
from sdlora.vision.training_images import batches

MODEL = "model.onnx"
OTHERS = "the captioner pocket, a BLIP or a Florence-2"
"""Captioners that need no further package."""
GENERAL, CHARACTER = "0", "4"
"""Categories of tags that captions have. Others are ratings (9) and what no model of this kind predicts."""
FACES = frozenset((
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^",
    "o_o", "u_u", "x_x", "|_|", "||_||",
))  # fmt: skip
"""Tags whose underscores are drawn, not blanks."""
MAX_TABLE_BYTES = 16 << 20
SIDES = 1, 2048
"""Least and largest side in pixels of the images that a model may take."""


@dataclass(frozen=True)
class Tag:
    """One output of the model."""

    words: str
    category: str


class Wd14Captioner(Captioner):
    """A tagger: probabilities of thousands of tags."""

    title: ClassVar[str] = "WD14 tagger"
    writes: ClassVar[Literal["sentences", "tags"]] = "tags"
    hub_files: ClassVar[tuple[str, ...]] = (MODEL, TAGS)

    def __init__(self, session: Any, tags: Sequence[Tag], settings: CaptionSettings):
        """Raise ModelError unless ``session`` takes square images, and gives a probability for each of ``tags``."""
        self.session, self.tags, self.settings = session, tags, settings
        (taken, *others), (given, *_) = session.get_inputs(), session.get_outputs()
        count, height, width, channels = taken.shape if len(taken.shape) == 4 else (0, 0, 0, 0)
        if others or channels != 3 or height != width or not (isinstance(width, int) and SIDES[0] <= width <= SIDES[1]):
            raise ModelError(f"its {MODEL} takes {taken.shape}, and no square images (N, side, side, 3)")
        if given.shape[-1] != len(tags):
            raise ModelError(f"its {MODEL} gives {given.shape[-1]} probabilities, and its {TAGS} has {len(tags)} tags")
        self.side, self._input = width, taken.name
        self._at_once = count if isinstance(count, int) else settings.batch_size
        """Images that the model takes at once: some take one only."""

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: torch.device) -> Self:
        for name in (MODEL, TAGS):
            if problem := path_problem(folder / name, folder):
                raise ModelError(f"{folder / name}: {problem}; a WD14 tagger has {MODEL} and {TAGS}")
        tags = read_tags(folder / TAGS)
        try:
            return cls(open_onnx(folder / MODEL, device, "a WD14 tagger", OTHERS), tags, settings)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        found: list[str] = []
        for batch in batches(images, self._at_once):
            pixels = np.stack([prepare(image, self.side) for image in batch])
            try:
                (odds, *_) = self.session.run(None, {self._input: pixels})
            except Exception as error:  # The library's own exceptions have no common class.
                raise ModelError(f"{self.title}: cannot tag an image: {first_line(error)}") from error
            found += [", ".join(cut_tags(self._likely(each), self.settings)) for each in odds]
        return found

    def _likely(self, odds: np.ndarray) -> list[str]:
        """Return the tags above their thresholds: characters, then what is general, the likeliest first."""
        least = {CHARACTER: self.settings.character_threshold, GENERAL: self.settings.threshold}
        order = np.argsort(-odds, kind="stable")
        return [
            self.tags[i].words
            for category, threshold in least.items()
            for i in order
            if self.tags[i].category == category and odds[i] >= threshold
        ]


def read_tags(path: Path) -> list[Tag]:
    """Read the table of a model's tags. Raises ModelError if it is none."""
    try:
        rows = list(csv.DictReader(read_text(path, MAX_TABLE_BYTES).splitlines()))
        tags = [Tag(tag_words(row["name"]), row["category"].strip()) for row in rows]
    except SdloraError as error:
        raise ModelError(str(error)) from None
    except (csv.Error, KeyError, AttributeError, TypeError):
        raise ModelError(f"{path}: is no table of tags with the columns name and category") from None
    if not tags:
        raise ModelError(f"{path}: has no tags")
    return tags


def tag_words(name: str) -> str:
    """Return a tag as captions have it: blanks for underscores, but for those of drawn faces; no comma in it."""
    name = one_line(name.strip(), 200)
    return name if name in FACES else name.replace("_", " ").replace(",", "")


def prepare(image: Image.Image, side: int) -> np.ndarray:
    """Return an image as these models take it: float32 (side, side, 3), BGR, 0 to 255, white around it."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image.convert("RGB"), ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32)[:, :, ::-1])
