"""Stable Diffusion 1.x: one CLIP text encoder, its last layer normalised, a UNet that predicts the noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline

from sdlora.errors import ModelError
from sdlora.families.base import Conditioning, Family, fingerprint

if TYPE_CHECKING:
    from torch import nn

WITHOUT_CHECKER: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


class SD1(Family):
    """A loaded Stable Diffusion 1.x (or the bundled `pocket`, which is a small one)."""

    name = "sd1"

    def __init__(self, pipeline: Any, source: str):
        """``pipeline``: a StableDiffusionPipeline, of which the parts are taken.

        Raises ModelError for a noise schedule or a prediction type that is not served.
        """
        self.source = source
        self.unet = pipeline.unet
        self.text_encoder = pipeline.text_encoder
        self.tokenizer = pipeline.tokenizer
        self._vae = pipeline.vae
        self._scheduler_config = dict(pipeline.scheduler.config)
        self.prediction_type = self._scheduler_config.get("prediction_type", "epsilon")
        _require_known_schedule(source, self._scheduler_config)
        self.latent_factor = pipeline.vae_scale_factor
        self.native_size = self.unet.config.sample_size * self.latent_factor
        self.size_step = self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.fingerprints = {part: fingerprint(module) for part, module in {**self.models, "vae": self._vae}.items()}
        for module in (*self.models.values(), self._vae):
            module.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: Path | str, source: str, **options: Any) -> "SD1":
        """From a diffusers folder or a hub id; ``options`` go to ``from_pretrained``."""
        return cls(
            StableDiffusionPipeline.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, **WITHOUT_CHECKER, **options
            ),
            source,
        )

    @classmethod
    def load_single_file(cls, file: Path, source: str) -> "SD1":
        """From one ``.safetensors`` file of the original layout, converted by diffusers."""
        return cls(StableDiffusionPipeline.from_single_file(str(file), dtype=torch.float32, **WITHOUT_CHECKER), source)

    @property
    def models(self) -> dict[str, "nn.Module"]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def vae(self) -> "nn.Module":
        return self._vae

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return self._scheduler_config

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def frame(self, tokens: Sequence[int]) -> torch.Tensor:
        known, length = self.tokenizer, self.text_encoder.config.max_position_embeddings
        marked = [known.bos_token_id, *tokens, known.eos_token_id]
        return torch.tensor([marked + [known.pad_token_id] * (length - len(marked))])

    @property
    def text_layers(self) -> int:
        return int(self.text_encoder.config.num_hidden_layers)

    def encode_text(self, ids: torch.Tensor, clip_skip: int = 1) -> Conditioning:
        if clip_skip == 1:
            return Conditioning(self.text_encoder(ids.to(self.device), return_dict=True).last_hidden_state)
        hidden = self.text_encoder(ids.to(self.device), output_hidden_states=True, return_dict=True).hidden_states
        return Conditioning(self.text_encoder.final_layer_norm(hidden[-clip_skip]))

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = pixels.to(self._vae.device, self._vae.dtype)
        distribution = self._vae.encode(pixels).latent_dist
        scale = self._vae.config.scaling_factor
        return distribution.mean.float() * scale, distribution.std.float() * scale

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        dtype = self.unet.dtype
        return self.unet(latents.to(dtype), timesteps, conditioning.text.to(dtype), return_dict=False)[0]

    def pipeline(self, scheduler: Any) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self._vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            image_encoder=None,
            **WITHOUT_CHECKER,
        )


def _require_known_schedule(source: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for noise schedules and targets that training would silently get wrong."""
    known = {
        "prediction_type": ("epsilon", "v_prediction"),
        "beta_schedule": ("linear", "scaled_linear"),
        "rescale_betas_zero_snr": (False, None),
    }
    for name, values in known.items():
        if name in config and config[name] not in values:
            raise ModelError(f"{source}: its scheduler's {name} is {config[name]!r}, which is not served yet")
