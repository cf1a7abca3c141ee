"""What all Stable Diffusion models share: a VAE, CLIP text encoders, and a UNet that reads what they say."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from sdlora.diffusion import ZERO_SNR
from sdlora.diffusion.ddpm import DDPMProcess
from sdlora.errors import ModelError
from sdlora.families.base import Conditioning, Family, to_device_async, weights_fingerprint

if TYPE_CHECKING:
    from torch import nn

DEFAULTED = "_use_default_values"
"""In a scheduler's config: diffusers' list of the entries that nobody has given."""


class StableDiffusion(Family):
    """A loaded model over a diffusers pipeline's parts. Each family says which pipeline, and how its texts are read."""

    extras: ClassVar[Mapping[str, Any]]
    """Arguments of the pipeline beside its parts."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(
        self,
        pipeline: Any,
        source: str,
        schedule: Mapping[str, Any] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ):
        """``schedule`` replaces entries of the scheduler's config, such as ``prediction_type``; ``fingerprints`` are
        given where there are no weights to take them from.

        Raises ModelError for a noise schedule or a prediction type that is not served.
        """
        self.source = source
        self.unet = pipeline.unet
        self._encoders = {name: getattr(pipeline, name) for name in self.encoders}
        self._tokenizers = {name: getattr(pipeline, name) for name in self.tokenizers}
        self.tokenizer = pipeline.tokenizer
        self._vae = pipeline.vae
        self._scheduler_config = _with_overrides(pipeline.scheduler.config, schedule or {})
        self.prediction_type = self._scheduler_config.get("prediction_type", "epsilon")
        _require_known_schedule(source, self._scheduler_config)
        if self._vae.config.get("latents_mean") is not None:
            raise ModelError(f"{source}: its VAE's latents have a mean of their own, which is not served yet")
        self.latent_factor = pipeline.vae_scale_factor
        self.native_size = self.unet.config.sample_size * self.latent_factor
        self.size_step = self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if fingerprints is None:
            fingerprints = {
                part: weights_fingerprint(module) for part, module in {**self.models, "vae": self._vae}.items()
            }
        self.fingerprints = fingerprints
        for module in (*self.models.values(), self._vae):
            module.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def pipeline_class(cls) -> Any:
        """The class of its pipelines."""

    @classmethod
    def load(cls, folder: Path | str, source: str, schedule: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """From a diffusers folder; ``options`` go to ``from_pretrained``."""
        pipeline = cls.pipeline_class().from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **cls.extras, **options
        )
        return cls(pipeline, source, schedule)

    @classmethod
    def load_single_file(
        cls, file: Path, config: Path, words: Mapping[str, Any], source: str, schedule: Mapping[str, Any] | None = None
    ) -> Self:
        """From one ``.safetensors`` file of the original layout, converted by diffusers after the folder ``config``.

        ``words`` are the tokenizers by component. Raises ModelError where the file leaves layers without weights.
        """
        pipeline = cls.pipeline_class().from_single_file(
            str(file), config=str(config), local_files_only=True, dtype=torch.float32, **words, **cls.extras
        )
        for part in ("unet", "vae", *cls.encoders):
            _require_weights(source, part, getattr(pipeline, part))
        return cls(pipeline, source, schedule)

    @property
    def models(self) -> dict[str, "nn.Module"]:
        return {"unet": self.unet, **self._encoders}

    @property
    def vae(self) -> "nn.Module":
        return self._vae

    @cached_property
    def process(self) -> DDPMProcess:
        return DDPMProcess(self._scheduler_config)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return self._scheduler_config

    @property
    def _length(self) -> int:
        return int(self._encoders["text_encoder"].config.max_position_embeddings)

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(
            list(prompts), padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        ).input_ids

    def bare_token_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def build_input_ids(self, tokens: Sequence[int]) -> torch.Tensor:
        known = self.tokenizer
        marked = [known.bos_token_id, *tokens, known.eos_token_id]
        return torch.tensor([marked + [known.pad_token_id] * (self._length - len(marked))])

    @property
    def text_layers(self) -> int:
        return min(int(encoder.config.num_hidden_layers) for encoder in self._encoders.values())

    def encode_text(self, ids: torch.Tensor, clip_skip: int = 1) -> Conditioning:
        encoder = self._encoders["text_encoder"]
        ids = to_device_async(ids, encoder.device)  # Which need not be the UNet's, where parts take turns.
        if clip_skip == 1:
            return Conditioning(encoder(ids, return_dict=True).last_hidden_state)
        hidden = encoder(ids, output_hidden_states=True, return_dict=True).hidden_states
        return Conditioning(encoder.final_layer_norm(hidden[-clip_skip]))

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = pixels.to(self._vae.device, self._vae.dtype)
        distribution = self._vae.encode(pixels).latent_dist
        scale = self._vae.config.scaling_factor
        return distribution.mean.float() * scale, distribution.std.float() * scale

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        size_and_crop: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Not ``unet.dtype``, which walks over every layer: several milliseconds a step.
        dtype = next(weight.dtype for weight in self.unet.parameters() if weight.is_floating_point())
        told, latents = conditioning.to(dtype), latents.to(dtype)
        return self.unet(
            latents,
            timesteps,
            told.text,
            added_cond_kwargs=self._added_conditions(told, latents, size_and_crop),
            return_dict=False,
        )[0]

    def _added_conditions(
        self, told: Conditioning, latents: torch.Tensor, size_and_crop: torch.Tensor | None
    ) -> dict[str, torch.Tensor] | None:
        """What the UNet is told besides the text, by diffusers' names."""
        return None

    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        return {"prompt_embeds": wanted.text, "negative_prompt_embeds": None if unwanted is None else unwanted.text}

    def pipeline(self, scheduler: Any) -> Any:
        parts = {"vae": self._vae, "unet": self.unet, **self._tokenizers, **self._encoders}
        return self.pipeline_class()(**parts, scheduler=scheduler, **self.extras)


def _require_weights(source: str, part: str, module: "nn.Module") -> None:
    """Raises ModelError for a module of which some weights were not there: they are on the meta device still."""
    bare = [name for name, weight in module.state_dict().items() if weight.is_meta]
    if bare:
        raise ModelError(
            f"{source}: {len(bare)} tensors of the part {part} are missing, such as {bare[0]}; it was cut down, or "
            "is of another architecture"
        )


def _with_overrides(config: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's ``config`` with the entries of ``schedule``.

    Those are no longer among the entries that diffusers takes for unsaid, and would leave out in other schedulers.
    """
    unsaid = [name for name in config.get(DEFAULTED, ()) if name not in schedule]
    return {**config, **schedule, DEFAULTED: unsaid}


def _require_known_schedule(source: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for noise schedules and targets that training would silently get wrong."""
    known = {
        "prediction_type": ("epsilon", "v_prediction"),
        "beta_schedule": ("linear", "scaled_linear"),
    }
    for name, values in known.items():
        if config.get(name, values[0]) not in values:
            raise ModelError(f"{source}: its scheduler's {name} is {config[name]!r}, which is not served yet")
    if "beta_start" not in config:
        raise ModelError(f"{source}: its scheduler ({config.get('_class_name')}) has no betas, and is not served yet")
    if config.get(ZERO_SNR) and config.get("prediction_type", "epsilon") == "epsilon":
        raise ModelError(
            f"{source}: its noise schedule ends in noise alone (zero terminal SNR), of which a model that predicts "
            "the noise learns nothing; set model.prediction_type = v_prediction, or model.zero_terminal_snr = off"
        )


WITHOUT_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
}


class SD1(StableDiffusion):
    """A loaded Stable Diffusion 1.x (or the bundled `pocket`, which is a small one)."""

    name = "sd1"
    extras = WITHOUT_CHECKER

    @classmethod
    def pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline


class SD2(SD1):
    """A loaded Stable Diffusion 2.0 or 2.1."""

    name = "sd2"
