"""BLIP (arXiv:2201.12086): a short sentence for a photo or a painting."""

from typing import ClassVar

import torch

from sdlora.captioning.generative import GenerativeCaptioner


class BlipCaptioner(GenerativeCaptioner):
    """``BlipForConditionalGeneration`` without a prompt."""

    title: ClassVar[str] = "BLIP"
    model_class: ClassVar[str] = "BlipForConditionalGeneration"
    tokenizer_class: ClassVar[str] = "BertTokenizer"

    def generate(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.model.generate(pixel_values=pixels, **self.limits)
        return tokens[:, 1:]  # Without the token that begins a sentence, which its tokenizer has no name for.
