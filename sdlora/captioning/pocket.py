"""The bundled captioner: CLIP of the base ``pocket`` says which object, colour and place of its world it sees.

Every description that the base knows is compared with an image, in each of the base's styles, by the cosines of CLIP's
features (zero-shot classification, arXiv:2103.00020, section 3.1). The style that fits best counts: a caption leaves
it out, as it is what an adapter may be about to learn. A look can also resemble a place, as neon resembles space: what
all images of a set have of a place is therefore left out too.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image

from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.errors import ModelError
from sdlora.evaluation.fidelity import Clip
from sdlora.families.known_words import KnownWords, describe, known_words, with_article
from sdlora.families.loading import quiet_libraries

FEATURE_BATCH = 128
"""Descriptions whose features are computed at once."""
SHARPNESS = 1.4
"""Factor of CLIP's own scale, which is too modest among 720 descriptions (temperature scaling, arXiv:1706.04599): with
it 93% of unseen drawings in the base's own styles reach the default threshold, of which 95% are named rightly.
"""
LEAST_SURVEYED = 5
"""Number of images below which what they share may be what they show."""


class PocketCaptioner(Captioner):
    """A CLIP that scores all descriptions of a small world."""

    title: ClassVar[str] = "pocket's own"
    hub_files: ClassVar[tuple[str, ...]] = ()
    surveys: ClassVar[bool] = True

    def __init__(self, clip: Clip, words: KnownWords, settings: CaptionSettings):
        self.clip, self.words, self.settings = clip, words, settings
        self._parts = tuple(words.subjects[part] for part in ("objects", "colours", "places"))
        self._looks = self._description_features()
        self._scale = SHARPNESS * clip.model.logit_scale.exp().item()
        self._shared = torch.zeros(len(self._parts[2]))
        """Mean log-probability of each place among the images of the set."""

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: torch.device) -> Self:
        words = known_words("pocket")
        if words is None:
            raise ModelError("pocket: its known_words.json is missing or damaged; install sdlora anew")
        with quiet_libraries():
            clip = Clip(folder, str(device), settings.batch_size)
        return cls(clip, words, settings)

    def survey(self, batches: Iterable[Sequence[Image.Image]]) -> None:
        """Look at all images of a style's set for the places that its look resembles.

        Captions then take what an image has of a place beyond the mean of the set, if that has five images or more.
        A subject's images may all show one place; captions have to name it, or it is learnt with the subject.
        """
        self._shared = torch.zeros_like(self._shared)
        if self.settings.class_name:
            return
        seen = [_places(self.odds(images)) for images in batches if images]
        if sum(map(len, seen)) >= LEAST_SURVEYED:
            self._shared = torch.cat(seen).mean(0)

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        return [self._caption(odds) for odds in self.odds(images)]

    @torch.no_grad()
    def odds(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the probability (N, objects, colours, places) of each description of an image; they sum to 1.

        CLIP's own scale of the cosines, learnt with it, makes them probabilities, sharpened.
        """
        cosines = torch.einsum("nd,ld->nl", self.clip.images(images), self._looks.flatten(0, 1))
        best = cosines.view(len(images), *self._looks.shape[:2]).amax(1)
        return (self._scale * best).softmax(1).view(-1, *map(len, self._parts))

    def _description_features(self) -> torch.Tensor:
        """Return features (styles, descriptions, D) of all descriptions in all styles, the first of which is none."""
        texts = [describe(*parts) for parts in product(*self._parts)]
        looks = ("{}", *self.words.style_phrases)
        styled = [look.format(text) for look in looks for text in texts]
        parts = [styled[first : first + FEATURE_BATCH] for first in range(0, len(styled), FEATURE_BATCH)]
        features = torch.cat([self.clip.texts(part, padding="longest") for part in parts])
        return features.view(len(looks), len(texts), -1)

    def _caption(self, odds: torch.Tensor) -> str:
        """Return the likeliest description, without the parts that are unsure or not allowed.

        It is empty if that is the object, without which there is no description.
        """
        objects, colours, _ = self._parts
        place = self._place(odds)
        if self.settings.class_name:
            return " ".join(filter(None, (with_article(self.settings.class_name), place)))
        threshold = self.settings.threshold
        thing = self._sure(objects, odds.sum((1, 2)), threshold)
        return describe(thing, self._sure(colours, odds.sum((0, 2)), threshold), place) if thing else ""

    def _place(self, odds: torch.Tensor) -> str | None:
        """Return the place of which an image has more than its set; None if unsure.

        One that the image by itself would not be given has to be surer: where all of a set show the same place, little
        tells which others its images have more of.
        """
        alone = _places(odds[None])[0]
        beyond, threshold = (alone - self._shared).softmax(0), self.settings.threshold
        same = beyond.argmax() == alone.argmax()
        return self._sure(self._parts[2], beyond, threshold if same else math.sqrt(threshold))

    def _sure(self, words: Sequence[str], odds: torch.Tensor, threshold: float) -> str | None:
        likeliest = int(odds.argmax())
        word = words[likeliest]
        refused = (re.search(rf"(?<!\w){re.escape(each)}(?!\w)", word, re.I) for each in self.settings.blacklist)
        return None if odds[likeliest] < threshold or any(refused) else word


def _places(odds: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities (N, places) in ``odds`` (N, objects, colours, places)."""
    return odds.sum((1, 2)).clamp_min(1e-12).log()
