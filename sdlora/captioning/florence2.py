"""Florence-2 (arXiv:2311.06242): some sentences that describe an image in detail, by transformers' own classes."""

from math import ceil, prod
from typing import ClassVar

import torch

from sdlora.captioning.generative import GenerativeCaptioner

PROMPT = "Describe in detail what is shown in the image."
"""The question that the model was trained to answer with a detailed caption."""


class Florence2Captioner(GenerativeCaptioner):
    """``Florence2ForConditionalGeneration``, asked for a detailed caption."""

    title: ClassVar[str] = "Florence-2"
    model_class: ClassVar[str] = "Florence2ForConditionalGeneration"
    tokenizer_class: ClassVar[str] = "BartTokenizer"

    def generate(self, pixels: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([self._input_ids()] * len(pixels), device=pixels.device)
        tokens: torch.Tensor = self.model.generate(input_ids=ids, pixel_values=pixels, **self.limits)
        return tokens

    def _input_ids(self) -> list[int]:
        """Return the tokens of a request: one for each feature of the image, and the question."""
        vision = self.model.config.vision_config
        stride = prod(vision.patch_stride)
        features = ceil(self.preparation.height / stride) * ceil(self.preparation.width / stride) + 1
        return [self.model.config.image_token_id] * features + self.tokenizer(PROMPT).input_ids
