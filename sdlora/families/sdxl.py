"""Stable Diffusion XL: two text encoders side by side, and a UNet that reads sizes and cuts.

Podell et al., arXiv:2307.01952, section 2: an image's original size and the position of its cut are conditions (2.2),
as the second encoder's pooled output is (2.1).
"""

from typing import TYPE_CHECKING, Any

from sdlora.families import sgm_names
from sdlora.families.adapter_naming import AdapterNaming, BaseNames
from sdlora.families.base import CLIP_LAYERS, CLIP_TARGETS, TOKENIZER, Component, Conditioning
from sdlora.families.stable_diffusion import CLIP, SGM_PREFIXES, UNET, VAE, StableDiffusion

if TYPE_CHECKING:
    import torch


class SDXL(StableDiffusion):
    """A loaded Stable Diffusion XL base model."""

    name = "sdxl"
    title = "SDXL"
    preset = "sdxl"
    pipelines = ("StableDiffusionXLPipeline",)
    components = {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": CLIP,
        "text_encoder_2": Component(
            "transformers", ("CLIPTextModelWithProjection",), target_groups=CLIP_TARGETS, layers=CLIP_LAYERS
        ),
        "tokenizer": TOKENIZER,
        "tokenizer_2": TOKENIZER,
    }
    single_file_prefixes = {
        **SGM_PREFIXES,
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    }
    adapter_naming = AdapterNaming(
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        to_kohya=lambda path: sgm_names.to_sgm(path) or path,
        from_kohya=sgm_names.from_sgm,
        bases=dict.fromkeys(
            ("epsilon", "v_prediction"), BaseNames("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL")
        ),
        version_prefix="sdxl",
        text_width=2048,
        own_layers=r"unet\..*\.transformer_blocks\.1\..*",  # Other UNets' attentions have one such block each.
        own_keys=tuple(f"lora_unet_{blocks}_" for blocks in ("input_blocks", "middle_block", "output_blocks")),
    )
    extras = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    tokenizers = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
    vae_fp16_ok = False

    @classmethod
    def hub_size(cls, name: str) -> int:
        return 1024 if "xl" in name else 0

    @classmethod
    def pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    @property
    def text_layers(self) -> int:
        return super().text_layers - 1  # The last is never read.

    def encode_text(self, ids: "torch.Tensor", clip_skip: int = 1) -> Conditioning:
        """Encode with both encoders: their last layer but ``clip_skip``, side by side, not normalised, and the second's
        pooled output.
        """
        import torch

        encoder: Any = self.modules["text_encoder"]
        ids = ids.to(encoder.device)
        options: dict[str, Any] = {"output_hidden_states": True, "return_dict": True}
        first, second = encoder(ids, **options), self.modules["text_encoder_2"](self._repad(ids), **options)
        layers = (output.hidden_states[-clip_skip - 1] for output in (first, second))
        return Conditioning(torch.cat([*layers], dim=-1), second.text_embeds)

    def _repad(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return the same text for the second encoder: the tokenizers differ in their padding alone."""
        import torch

        ends = (ids == self.tokenizer.eos_token_id).int()
        return torch.where(ends.cumsum(1) > ends, self._tokenizers["tokenizer_2"].pad_token_id, ids)

    def _added_conditions(
        self, conditioning: Conditioning, latents: "torch.Tensor", size_and_crop: "torch.Tensor | None"
    ) -> "dict[str, torch.Tensor]":
        assert conditioning.pooled is not None
        return {"text_embeds": conditioning.pooled, "time_ids": self._sizes(latents, size_and_crop)}

    def _sizes(self, latents: "torch.Tensor", size_and_crop: "torch.Tensor | None") -> "torch.Tensor":
        """Return (B, 6): original height and width, top and left of the cut, height and width of the cut."""
        import torch

        cut = torch.tensor([side * self.latent_factor for side in latents.shape[-2:]], device=latents.device)
        cut = cut.expand(len(latents), 2)
        original = (
            torch.cat([cut, torch.zeros_like(cut)], dim=1)
            if size_and_crop is None
            else size_and_crop.to(latents.device)
        )
        return torch.cat([original, cut], dim=1)

    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        return {
            **super().pipeline_kwargs(wanted, unwanted),
            "pooled_prompt_embeds": wanted.pooled,
            "negative_pooled_prompt_embeds": None if unwanted is None else unwanted.pooled,
        }
