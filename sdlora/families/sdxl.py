"""Stable Diffusion XL: two text encoders side by side, and a UNet that is told sizes and cuts.

Podell et al., arXiv:2307.01952, section 2: what a picture's size was and where it was cut are conditions (2.2), as the
second encoder's pooled output is (2.1).
"""

from typing import Any

import torch

from sdlora.families.base import Conditioning
from sdlora.families.stable_diffusion import StableDiffusion


class SDXL(StableDiffusion):
    """A loaded Stable Diffusion XL base model."""

    name = "sdxl"
    extras = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    parts = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    vae_fp16_ok = False

    @classmethod
    def pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    @property
    def text_layers(self) -> int:
        return super().text_layers - 1  # The last is never read.

    def encode_text(self, ids: torch.Tensor, clip_skip: int = 1) -> Conditioning:
        """Both encoders' last layer but ``clip_skip``, side by side, not normalised; and the second's pooled output."""
        ids = ids.to(self._encoders["text_encoder"].device)
        asked: dict[str, Any] = {"output_hidden_states": True, "return_dict": True}
        first = self._encoders["text_encoder"](ids, **asked)
        second = self._encoders["text_encoder_2"](self._repad(ids), **asked)
        layers = (read.hidden_states[-clip_skip - 1] for read in (first, second))
        return Conditioning(torch.cat([*layers], dim=-1), second.text_embeds)

    def _repad(self, ids: torch.Tensor) -> torch.Tensor:
        """The same text for the second encoder: the tokenizers differ in what stands behind its end alone."""
        ends = (ids == self.tokenizer.eos_token_id).int()
        return torch.where(ends.cumsum(1) > ends, self._tokenizers["tokenizer_2"].pad_token_id, ids)

    def _added_conditions(
        self, told: Conditioning, latents: torch.Tensor, size_and_crop: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        assert told.pooled is not None
        return {"text_embeds": told.pooled, "time_ids": self._sizes(latents, size_and_crop)}

    def _sizes(self, latents: torch.Tensor, size_and_crop: torch.Tensor | None) -> torch.Tensor:
        """(B, 6): the picture's own height and width, top and left of the cut, height and width that are shown."""
        shown = torch.tensor([side * self.latent_factor for side in latents.shape[-2:]], device=latents.device)
        shown = shown.expand(len(latents), 2)
        whole = (
            torch.cat([shown, torch.zeros_like(shown)], dim=1)
            if size_and_crop is None
            else size_and_crop.to(latents.device)
        )
        return torch.cat([whole, shown], dim=1)

    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        return {
            **super().pipeline_kwargs(wanted, unwanted),
            "pooled_prompt_embeds": wanted.pooled,
            "negative_pooled_prompt_embeds": None if unwanted is None else unwanted.pooled,
        }
