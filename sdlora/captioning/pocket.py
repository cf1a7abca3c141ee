"""The bundled captioner: CLIP of the base ``pocket`` says which object, colour and place of its world it sees.

Every description that the base knows is compared with an image, in each of the base's styles, by the cosines of CLIP's
features (zero-shot classification, arXiv:2103.00020, section 3.1). The style that fits best counts: a caption leaves
it out, as it is what an adapter may be about to learn. A look can also resemble a place, as neon resembles space: then
what an image has of a place beyond its set counts.
"""

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
AT_HOME = 0.31
"""Mean cosine of images to their likeliest descriptions from which on CLIP knows their look: in sets of ten 0.32 to
0.37 in those that it knows, 0.28 to 0.31 in neon and stained glass."""
MOST = 0.7
"""Share of a set that seems to show one place from which on that may be the look: at least 0.8 of ten in neon, at most
0.4 of ten in stained glass."""


class PocketCaptioner(Captioner):
    """A CLIP that scores all descriptions of a small world."""

    title: ClassVar[str] = "pocket's own"
    hub_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, clip: Clip, words: KnownWords, settings: CaptionSettings):
        self.clip, self.words, self.settings = clip, words, settings
        self._parts = tuple(words.subjects[part] for part in ("objects", "colours", "places"))
        self._looks = self._description_features()
        self._scale = SHARPNESS * clip.model.logit_scale.exp().item()
        self._shared = torch.zeros(len(self._parts[2]))
        """Mean log-probability of each place among the images of the set, if that is of its look; else zeros."""

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: torch.device) -> Self:
        words = known_words("pocket")
        if words is None:
            raise ModelError("pocket: its known_words.json is missing or damaged; install sdlora anew")
        with quiet_libraries():
            clip = Clip(folder, str(device), settings.batch_size)
        return cls(clip, words, settings)

    def survey(self, batches: Iterable[Sequence[Image.Image]]) -> None:
        """Look at all images of a style's set, for a place that its look resembles.

        If CLIP does not know the look, and nearly all images seem to show one place, captions take what an image has of
        a place beyond the mean of the set. A subject's images may well all show one place; captions have to name it, or
        it is learnt with the subject.
        """
        self._shared = torch.zeros_like(self._shared)
        if self.settings.class_name:
            return
        cosines = [self._cosines(images) for images in batches if images]
        if sum(map(len, cosines)) < LEAST_SURVEYED:
            return
        best = torch.cat(cosines)
        places = _places(self._probabilities(best))
        commonest = places.argmax(1).bincount().max().item() / len(places)
        if best.amax(1).mean().item() < AT_HOME and commonest >= MOST:
            self._shared = places.mean(0)

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        return [self._caption(odds) for odds in self.odds(images)]

    @torch.no_grad()
    def odds(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the probability (N, objects, colours, places) of each description of an image; they sum to 1.

        CLIP's own scale of the cosines, learnt with it, makes them probabilities, sharpened.
        """
        return self._probabilities(self._cosines(images))

    def _probabilities(self, cosines: torch.Tensor) -> torch.Tensor:
        return (self._scale * cosines).softmax(1).view(-1, *map(len, self._parts))

    @torch.no_grad()
    def _cosines(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the cosine (N, descriptions) of each image to each description, in the style in which it fits best."""
        cosines = torch.einsum("nd,ld->nl", self.clip.images(images), self._looks.flatten(0, 1))
        return cosines.view(len(images), *self._looks.shape[:2]).amax(1)

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
        thing = self._sure(objects, odds.sum((1, 2)))
        return describe(thing, self._sure(colours, odds.sum((0, 2))), place) if thing else ""

    def _place(self, odds: torch.Tensor) -> str | None:
        """Return the place of which an image has more than its set shares; None if unsure."""
        return self._sure(self._parts[2], (_places(odds[None])[0] - self._shared).softmax(0))

    def _sure(self, words: Sequence[str], odds: torch.Tensor) -> str | None:
        likeliest = int(odds.argmax())
        word = words[likeliest]
        refused = (re.search(rf"(?<!\w){re.escape(each)}(?!\w)", word, re.I) for each in self.settings.blacklist)
        return None if odds[likeliest] < self.settings.threshold or any(refused) else word


def _places(odds: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities (N, places) in ``odds`` (N, objects, colours, places)."""
    return odds.sum((1, 2)).clamp_min(1e-12).log()
