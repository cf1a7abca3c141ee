"""Stable Diffusion 1 and 2, and what XL shares with them: a VAE, CLIP text encoders, and a UNet that reads both."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sdlora.errors import ModelError, NonFiniteError
from sdlora.families import sgm_names
from sdlora.families.adapter_naming import AdapterNaming, BaseNames, LayerNaming
from sdlora.families.base import (
    CLIP_LAYERS,
    CLIP_TARGETS,
    TOKENIZER,
    Component,
    Conditioning,
    Family,
    to_device_async,
    weights_fingerprint,
)
from sdlora.families.detect import sgm_family
from sdlora.families.lazy_modules import LazyModules

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.diffusion.ddpm import DDPMProcess

ATTENTION_PEAK = 48
"""Tensors of the UNet's first width, at the size of the latents, that exist at once while it predicts: its inputs to
the way up, a transformer block's hidden layer (8 widths), attention, and the convolutions' workspace."""
DECODER_PEAK = 10
"""Tensors of the decoder's second width, at the size of the image, in float32, that exist at once while it decodes."""

_BLOCKS = r"(down_blocks|mid_block|up_blocks)\..*"
_ATTENTION = r"\.attn[12]\.(to_[qkv]|to_out\.0)"
UNET = Component(
    "diffusers",
    ("UNet2DConditionModel",),
    target_groups={
        "cross-attention": _BLOCKS + r"\.attn2\.(to_[qkv]|to_out\.0)",
        "attention": _BLOCKS + _ATTENTION,
        "attention+ff": rf"{_BLOCKS}({_ATTENTION}|\.ff\.net\.(0\.proj|2))",
        "linear": _BLOCKS + r"\.?attentions\.\d+\..+",
        "linear+conv": _BLOCKS,
        "ia3": _BLOCKS + r"\.(attn[12]\.to_[kv]|ff\.net\.2)",
    },
    layers=LayerNaming(
        steps=(
            "down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers",
            "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in",
            "proj_out", "conv", "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "time_emb_proj",
            "time_embedding", "linear_1", "linear_2", "add_embedding", *sgm_names.STEPS,
        ),
        roots=("down_blocks", "mid_block", "up_blocks"),
        text_inputs=(".attn2.to_k", ".attn2.to_v"),
        unbiased=(".to_q", ".to_k", ".to_v"),
    ),
)  # fmt: skip
"""UNet whose group ``linear`` is what sd-scripts adapts by default (Transformer2DModel, CLIPAttention, CLIPMLP).

``linear+conv`` adds the ResnetBlock2D, Downsample2D and Upsample2D that it adapts with a ``conv_dim``
(github.com/kohya-ss/sd-scripts, networks/lora.py). ``ia3`` are keys, values and the second layer of feed-forward nets
(arXiv:2205.05638, section 3.3)."""
VAE = Component("diffusers", ("AutoencoderKL",))
CLIP = Component("transformers", ("CLIPTextModel",), target_groups=CLIP_TARGETS, layers=replace(CLIP_LAYERS, flat=True))
SGM_PREFIXES: Mapping[str, str | tuple[str, ...]] = {
    "unet": "model.diffusion_model.",
    "vae": ("first_stage_model.", "vae."),
}
"""``single_file_prefixes`` of all families here, text encoders left out."""


class StableDiffusion(Family):
    """A loaded model over a diffusers pipeline's components. Subclasses name the pipeline and read the texts."""

    denoiser = "unet"
    latent_channels = 4
    extras: ClassVar[Mapping[str, Any]]
    """Arguments of the pipeline beside its components."""
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "text_encoder"}

    def __init__(
        self,
        pipeline: Any,
        source: str,
        schedule: Mapping[str, Any] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        closed: "Mapping[str, torch.dtype] | None" = None,
    ):
        """Take over a pipeline's components, frozen and in evaluation mode.

        ``schedule`` replaces entries of the scheduler's config, such as ``prediction_type``; ``fingerprints`` are given
        where there are no weights to take them from; ``closed`` are those of ``LazyModules``. Raises ModelError for a
        noise schedule or a prediction type that is not served.
        """
        from sdlora.diffusion.ddpm import override_schedule, require_known_schedule

        self.source = source
        names = (self.denoiser, *self.tokenizers.values(), "vae")
        modules: dict[str, Any] = {name: getattr(pipeline, name) for name in names}
        self.modules = LazyModules(modules, closed)
        self._tokenizers = {name: getattr(pipeline, name) for name in self.tokenizers}
        self.tokenizer = pipeline.tokenizer
        self._scheduler_config = override_schedule(pipeline.scheduler.config, schedule or {})
        require_known_schedule(source, self._scheduler_config)
        if modules["vae"].config.get("latents_mean") is not None:
            raise ModelError(f"{source}: its VAE's latents have a mean of their own, which is not served yet")
        self.latent_factor = pipeline.vae_scale_factor
        config = modules[self.denoiser].config
        self.native_size = config.sample_size * self.latent_factor
        self.size_step = self.latent_factor * 2 ** (len(config.block_out_channels) - 1)
        if fingerprints is None:
            fingerprints = {name: weights_fingerprint(module) for name, module in modules.items()}
        self.fingerprints = fingerprints
        for module in modules.values():
            module.requires_grad_(False).eval()

    @classmethod
    @abstractmethod
    def pipeline_class(cls) -> Any:
        """Return the class of its pipelines."""

    @classmethod
    def matches_single_file(cls, header: Mapping[str, Any]) -> bool:
        return sgm_family(header) == cls.name

    @classmethod
    def load(
        cls,
        folder: Path,
        source: str,
        schedule: Mapping[str, Any] | None = None,
        dtype: "torch.dtype | None" = None,
        variant: str | None = None,
    ) -> Self:
        parts = {name: cls._map(folder, name, variant) for name in ("vae", *cls.tokenizers.values(), cls.denoiser)}
        pipeline = cls.pipeline_class().from_pretrained(folder, local_files_only=True, **parts, **cls.extras)
        return cls(pipeline, source, schedule, closed=cls._dtypes(dtype))

    @classmethod
    def _dtypes(cls, dtype: "torch.dtype | None") -> "dict[str, torch.dtype]":
        """Return the precision of each component in use: the VAE's is always float32."""
        import torch

        models = dict.fromkeys((*cls.tokenizers.values(), cls.denoiser), dtype or torch.float32)
        return {"vae": torch.float32, **models}

    @classmethod
    def _map(cls, folder: Path, name: str, variant: str | None) -> Any:
        """Map one component of a diffusers folder in the precision of its file; ``variant`` where it has such files."""
        from sdlora.families.layer_weights import stored_dtype, weight_files

        component, files = cls.components[name], weight_files(folder / name, variant)
        return getattr(import_module(component.library), component.classes[0]).from_pretrained(
            folder,
            subfolder=name,
            dtype=stored_dtype(files),
            variant=variant if any(f".{variant}" in file.name for file in files) else None,
            use_safetensors=True,
            local_files_only=True,
        )

    @classmethod
    def load_single_file(
        cls,
        file: Path,
        config: Path,
        tokenizers: Mapping[str, Any],
        source: str,
        schedule: Mapping[str, Any] | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> Self:
        """Load one ``.safetensors`` file of the original layout, converted by diffusers after the folder ``config``.

        ``tokenizers`` are given by component; precisions are as ``load`` has them. Raises ModelError where the file
        leaves layers without weights.
        """
        from sdlora.families.layer_weights import stored_dtype

        pipeline = cls.pipeline_class().from_single_file(
            str(file), config=str(config), local_files_only=True, dtype=stored_dtype([file]), **tokenizers, **cls.extras
        )
        dtypes = cls._dtypes(dtype)
        for name in dtypes:
            _require_weights(source, name, getattr(pipeline, name))
        return cls(pipeline, source, schedule, closed=dtypes)

    @classmethod
    def from_meta(
        cls,
        modules: "Mapping[str, nn.Module]",
        scheduler_config: Mapping[str, Any],
        source: str,
        schedule: Mapping[str, Any] | None = None,
    ) -> Self:
        vae: Any = modules["vae"]
        tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=0, pad_token_id=0)
        pipeline = SimpleNamespace(
            **modules, **dict.fromkeys(cls.tokenizers, tokenizer), scheduler=SimpleNamespace(config=scheduler_config),
            vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1),
        )  # fmt: skip
        return cls(pipeline, source, schedule, {})

    @cached_property
    def process(self) -> "DDPMProcess":
        from sdlora.diffusion.ddpm import DDPMProcess

        return DDPMProcess(self._scheduler_config)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return self._scheduler_config

    @property
    def _length(self) -> int:
        """Number of tokens that the text encoder reads."""
        return int(self.modules.peek("text_encoder").config.max_position_embeddings)

    def tokenize(self, prompts: Sequence[str]) -> "torch.Tensor":
        return self.tokenizer(
            list(prompts), padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        ).input_ids

    def token_ids_without_special(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def build_input_ids(self, tokens: Sequence[int]) -> "torch.Tensor":
        import torch

        marked = [self.tokenizer.bos_token_id, *tokens, self.tokenizer.eos_token_id]
        return torch.tensor([marked + [self.tokenizer.pad_token_id] * (self._length - len(marked))])

    @property
    def text_layers(self) -> int:
        return min(int(self.modules.peek(name).config.num_hidden_layers) for name in self.tokenizers.values())

    def encode_text(self, ids: "torch.Tensor", clip_skip: int = 1) -> Conditioning:
        encoder: Any = self.modules["text_encoder"]
        ids = to_device_async(ids, encoder.device)  # It need not be the UNet's, where components are offloaded.
        if clip_skip == 1:
            return Conditioning(encoder(ids, return_dict=True).last_hidden_state)
        hidden = encoder(ids, output_hidden_states=True, return_dict=True).hidden_states
        return Conditioning(encoder.final_layer_norm(hidden[-clip_skip]))

    def encode_images(self, pixels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        vae: Any = self.vae
        distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return distribution.mean.float() * scale, distribution.std.float() * scale

    def decode(self, latents: "torch.Tensor") -> "torch.Tensor":
        return decode_latents(self.vae, latents)

    def predict(
        self,
        latents: "torch.Tensor",
        times: "torch.Tensor",
        conditioning: Conditioning,
        size_and_crop: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        dtype = self.dtype
        conditioning, latents = conditioning.to(dtype), latents.to(dtype)
        return self.denoiser_module(
            latents,
            times,
            conditioning.text,
            added_cond_kwargs=self._added_conditions(conditioning, latents, size_and_crop),
            return_dict=False,
        )[0]

    def _added_conditions(
        self, conditioning: Conditioning, latents: "torch.Tensor", size_and_crop: "torch.Tensor | None"
    ) -> "dict[str, torch.Tensor] | None":
        """Return what the UNet reads besides the text, by diffusers' names."""
        return None

    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        return {"prompt_embeds": wanted.text, "negative_prompt_embeds": None if unwanted is None else unwanted.text}

    def pipeline(self, scheduler: Any) -> Any:
        return self.pipeline_class()(**self.modules, **self._tokenizers, scheduler=scheduler, **self.extras)

    def prediction_bytes(self, width: int, height: int, batch: int) -> int:
        latents = (width // self.latent_factor) * (height // self.latent_factor)
        first_width = self.modules.peek(self.denoiser).config.block_out_channels[0]
        return latents * batch * ATTENTION_PEAK * first_width * self.dtype.itemsize

    def decode_bytes(self, width: int, height: int) -> int:
        widths = self.modules.peek("vae").config.block_out_channels
        return int(width * height * DECODER_PEAK * widths[min(1, len(widths) - 1)] * 4)

    @property
    def tile_size(self) -> int:
        return int(self.modules.peek("vae").tile_latent_min_size) * self.latent_factor


def decode_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Return pixels (B, 3, H, W) in about [-1, 1], float32, of scaled ``latents``.

    Some decoders overflow in half precision, which shows as black images: those are decoded again in float32.
    Raises NonFiniteError if that gives no image either.
    """
    import torch

    latents, dtype = latents / vae.config.scaling_factor, vae.dtype
    pixels: torch.Tensor = vae.decode(latents.to(dtype), return_dict=False)[0].float()
    if dtype != torch.float32 and not pixels.isfinite().all():
        try:
            pixels = vae.to(torch.float32).decode(latents.float(), return_dict=False)[0]
        finally:
            vae.to(dtype)  # Widened weights narrow again to the same bits.
    if not pixels.isfinite().all():
        raise NonFiniteError("the base's VAE gives NaN, in float32 too: its weights are broken; take another base")
    return pixels


def _require_weights(source: str, name: str, module: "nn.Module") -> None:
    """Raise ModelError for a module of which some weights are missing: they are still on the meta device."""
    missing = [key for key, weight in module.state_dict().items() if weight.is_meta]
    if missing:
        raise ModelError(
            f"{source}: {len(missing)} tensors of the part {name} are missing, such as {missing[0]}; it was cut down, "
            "or is of another architecture"
        )


class SD1(StableDiffusion):
    """A loaded Stable Diffusion 1.x, or the bundled `pocket`, which is a small one."""

    name = "sd1"
    title = "SD 1.x"
    preset = "sd15"
    pipelines = ("StableDiffusionPipeline",)
    components = {"unet": UNET, "vae": VAE, "text_encoder": CLIP, "tokenizer": TOKENIZER}
    single_file_prefixes = {**SGM_PREFIXES, "text_encoder": "cond_stage_model.transformer.text_model."}
    adapter_naming = AdapterNaming(
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
        aliases={"lora_te1": "text_encoder"},  # As diffusers' own converter writes it for SD 1.x.
        from_kohya=sgm_names.from_sgm,
        bases={
            "epsilon": BaseNames("sd_v1", "stable-diffusion-v1", "SD1"),
            "v_prediction": BaseNames("sd_v1_v", "stable-diffusion-v1", "SD1"),
        },
        version_prefix="sd_v1",
        text_width=768,
    )
    extras = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }

    @classmethod
    def pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    @classmethod
    def matches_config(cls, denoiser: Mapping[str, Any]) -> bool:
        return not _projects_linearly(denoiser)  # SD 1.x projects with convolutions.


class SD2(SD1):
    """A loaded Stable Diffusion 2.0 or 2.1."""

    name = "sd2"
    title = "SD 2.x"
    single_file_prefixes = {**SGM_PREFIXES, "text_encoder": "cond_stage_model.model."}
    adapter_naming = replace(
        SD1.adapter_naming,
        bases={
            "epsilon": BaseNames("sd_v2", "stable-diffusion-v2-512", "SD2"),
            "v_prediction": BaseNames("sd_v2_v", "stable-diffusion-v2-768-v", "SD2"),
        },
        v2=True,
        version_prefix="sd_v2",
        text_width=1024,
    )

    @classmethod
    def matches_config(cls, denoiser: Mapping[str, Any]) -> bool:
        return _projects_linearly(denoiser)

    @classmethod
    def hub_size(cls, name: str) -> int:
        return 768 if ("stable-diffusion-2" in name and "base" not in name) or "768" in name else 0


def _projects_linearly(unet: Mapping[str, Any]) -> bool:
    return bool(unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024)
