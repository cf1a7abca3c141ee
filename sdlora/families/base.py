"""Protocol of a family of base models: all that the rest of the program knows of one.

A new family is a subclass of ``Family`` in one file or package, and one row in ``sdlora.families.FAMILIES``. It gives:

1. Class attributes, read before any model is loaded: ``name`` and ``title``; ``components`` (the folders of a model,
   the only classes that may be loaded from each, the layers that each target group of ``adapters.targets`` means there,
   and how adapter files spell them); which of them is the ``denoiser``; ``latent_channels``; ``adapter_naming``, the
   family in adapter files; ``preset``, how its presets begin; ``generation_defaults``, its usual steps, guidance and
   sampler; ``tokenizers``, by the text encoders that read them; the ``pipelines`` by which a folder is recognised, with
   ``matches_config`` where another family has the same; ``single_file_prefixes`` and
   ``matches_single_file`` if it comes in single files.
2. ``load``, and with single files ``load_single_file``, which return the loaded family; ``from_meta``, which returns it
   without weights.
3. The attributes and abstract methods of a loaded model: its modules, its noise process (a ``NoiseProcess`` of its own
   if ``DDPMProcess`` does not describe it), how texts are read and images encoded and decoded, the prediction, the
   pipeline for sampling, and what prediction and decoding take of memory.

Modules that declare a family import torch and diffusers inside functions, since settings are checked against the
declarations.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sdlora.families.adapter_naming import AdapterNaming, LayerNaming

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.diffusion.process import NoiseProcess
    from sdlora.families.lazy_modules import LazyModules


@dataclass(frozen=True)
class Component:
    """A folder of a model in diffusers' layout, and the classes that may be loaded from it."""

    library: str
    """``diffusers`` or ``transformers``."""
    classes: tuple[str, ...]
    weights: bool = True
    """True for a module with weights, False for a tokenizer."""
    target_groups: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of the layers of each target group, on whole paths within the component. Empty for a
    component that takes no adapter."""
    layers: LayerNaming = field(default_factory=LayerNaming)
    """Spelling of its layers' paths in adapter files."""


TOKENIZER = Component("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), weights=False)
CLIP_TARGETS = {
    "cross-attention": r".*\.self_attn\.(q|k|v|out)_proj",
    "attention": r".*\.self_attn\.(q|k|v|out)_proj",
    "attention+ff": r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    "linear": r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    "linear+conv": r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    "ia3": r".*\.(self_attn\.[kv]_proj|mlp\.fc2)",
}
"""Target groups of CLIP's text encoders."""
CLIP_LAYERS = LayerNaming(
    steps=(
        "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2",
        "text_projection",
    ),
    roots=("text_model", "text_projection"),
    prefix="text_model.",
    text_inputs=(".q_proj",),
)  # fmt: skip
"""Paths in CLIP's text encoders with a projection, which transformers 5 keeps as they were."""


@dataclass(frozen=True)
class Conditioning:
    """Conditions of the denoiser: ``text`` (B, L, D), and what some families add to it."""

    text: "torch.Tensor"
    pooled: "torch.Tensor | None" = None
    """(B, P): one vector for the text, which some denoisers read too."""

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return its tensors by name; ``Conditioning(**tensors)`` restores it."""
        return {"text": self.text} if self.pooled is None else {"text": self.text, "pooled": self.pooled}

    def to(self, *to: Any) -> "Conditioning":
        """Return it on a device, or in a precision."""
        return Conditioning(**{name: tensor.to(*to) for name, tensor in self.tensors().items()})

    def select_rows(self, rows: Sequence[int]) -> "Conditioning":
        """Return the batch of these ``rows``, each as often as it is named.

        Stacked, not indexed: indexing adds gradients up in the order in which threads come, which changes their bits.
        """
        import torch

        parts = self.tensors().items()
        return Conditioning(**{name: torch.stack([tensor[row] for row in rows]) for name, tensor in parts})

    @staticmethod
    def cat(several: "Sequence[Conditioning]") -> "Conditioning":
        """Return one batch of ``several``, in their order."""
        import torch

        parts = [one.tensors() for one in several]
        return Conditioning(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def to_device_async(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Return ``tensor`` on ``device`` without waiting for the device's queue (CUDA: from pinned memory alone)."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Family(ABC):
    """A loaded base model of one family.

    Pixels are (B, 3, H, W) in [-1, 1]; latents (B, ``latent_channels``, H / ``latent_factor``, W / ``latent_factor``)
    have the VAE's scaling factor applied; times are (B,), as ``process`` samples them.
    """

    name: ClassVar[str]
    """Key in ``FAMILIES``."""
    title: ClassVar[str]
    """Name for people."""
    components: ClassVar[Mapping[str, Component]]
    """Components by the name of their folder; a folder ``scheduler`` is beside them."""
    denoiser: ClassVar[str]
    """Name of the component that predicts."""
    latent_channels: ClassVar[int]
    adapter_naming: ClassVar[AdapterNaming]
    """Names of the family and its layers in adapter files."""
    preset: ClassVar[str]
    """Beginning of the names of its presets."""
    tokenizers: ClassVar[Mapping[str, str]]
    """Text encoders by the tokenizer that they read from."""
    pipelines: ClassVar[tuple[str, ...]]
    """Pipeline classes that ``model_index.json`` of such a model may name."""
    single_file_prefixes: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    """Beginnings of the tensors' names of each component in single files of the original layout."""
    generation_defaults: ClassVar[Mapping[str, Any]] = {}
    """Its usual values of ``SamplingSettings``, where they are others than the defaults there."""
    vae_fp16_ok: ClassVar[bool] = True
    """True if the VAE works in half precision. SDXL's own gives infinite values there, and stays in float32."""

    source: str
    """Base model as the user wrote it."""
    modules: "LazyModules"
    """Modules with weights by component, the VAE as ``vae``; each opens when it is first read."""
    fingerprints: Mapping[str, str]
    """Hash of each component's weights, the VAE's among them; caches are keyed by it."""
    native_size: int
    """Side in pixels of the images that the model was trained on."""
    latent_factor: int
    """Pixels per latent, along each side."""
    size_step: int
    """Number of pixels of which an image's sides are multiples."""

    @classmethod
    def matches_config(cls, denoiser: Mapping[str, Any]) -> bool:
        """Return whether a folder with one of ``pipelines`` and this config of the denoiser is of this family."""
        return True

    @classmethod
    def matches_single_file(cls, header: Mapping[str, Any]) -> bool:
        """Return whether a safetensors file with this ``header`` is of this family."""
        return False

    @classmethod
    def hub_size(cls, name: str) -> int:
        """Guess the native size in pixels of a hub's model by its lower-case ``name``; 0 if that does not tell of this
        family.
        """
        return 0

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: Path,
        source: str,
        schedule: Mapping[str, Any] | None = None,
        dtype: "torch.dtype | None" = None,
        variant: str | None = None,
    ) -> Self:
        """Load a diffusers folder on the CPU: the VAE in float32, all else in ``dtype`` (float32 if None).

        What can be left closed is, until it is first used (``LazyModules``).

        ``schedule`` replaces entries of the scheduler's config; ``variant`` names files such as ``fp16`` ones.
        """

    @classmethod
    @abstractmethod
    def from_meta(
        cls,
        modules: "Mapping[str, nn.Module]",
        scheduler_config: Mapping[str, Any],
        source: str,
        schedule: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the family over ``modules`` without weights, by component, to count what it takes of memory.

        It has no tokenizer: of texts, it reads ``build_input_ids`` alone. ``schedule`` is that of ``load``.
        """

    @property
    @abstractmethod
    def process(self) -> "NoiseProcess":
        """Noise process that the model was trained on, on the CPU: times, noise, target and weights of a step."""

    @property
    @abstractmethod
    def scheduler_config(self) -> dict[str, Any]:
        """Scheduler configuration of the model (betas, prediction type), as diffusers keeps it."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Return token ids (B, L) int64 on the CPU, cut or padded to the text encoder's length."""

    @abstractmethod
    def token_ids_without_special(self, text: str) -> list[int]:
        """Return the token ids of ``text`` alone: neither cut nor padded, without start and end tokens."""

    @abstractmethod
    def build_input_ids(self, tokens: Sequence[int]) -> "torch.Tensor":
        """Return token ids (1, L) int64 of at most L - 2 bare ``tokens``, with start, end and padding as ``tokenize``
        has them.
        """

    @property
    @abstractmethod
    def text_layers(self) -> int:
        """Number of text layers that can be read, the most that ``clip_skip`` can be."""

    @abstractmethod
    def encode_text(self, ids: "torch.Tensor", clip_skip: int = 1) -> Conditioning:
        """Encode token ``ids`` (B, L) int64 for the denoiser: ``text`` is (B, L, D). Gradients flow if it trains.

        ``clip_skip`` is the layer that is read, counted back from the one that the base was trained with, which is 1.
        """

    @abstractmethod
    def encode_images(self, pixels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return mean and standard deviation of the images' latents, both in the latents' shape, float32, scaled."""

    @abstractmethod
    def decode(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Return pixels in about [-1, 1], float32. Raises NonFiniteError if the VAE gives no numbers."""

    @abstractmethod
    def predict(
        self,
        latents: "torch.Tensor",
        times: "torch.Tensor",
        conditioning: Conditioning,
        size_and_crop: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """Return the denoiser's prediction for noisy ``latents``, of their shape.

        ``size_and_crop`` (B, 4) int64 is for denoisers that read it: height and width in pixels of the images before
        they were cut, and top and left of the cut in the scaled image. None: they are uncut.
        """

    @abstractmethod
    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        """Return the arguments of ``pipeline``'s call for a prompt and, with guidance, a negative prompt."""

    @abstractmethod
    def pipeline(self, scheduler: Any) -> Any:
        """Return a diffusers pipeline over these very modules (nothing is copied) with ``scheduler``."""

    @abstractmethod
    def prediction_bytes(self, width: int, height: int, batch: int) -> int:
        """Estimate the bytes that predicting ``batch`` images of ``width`` x ``height`` pixels takes beside weights."""

    @abstractmethod
    def decode_bytes(self, width: int, height: int) -> int:
        """Estimate the bytes that decoding an image of ``width`` x ``height`` pixels, or a tile, takes."""

    @property
    @abstractmethod
    def tile_size(self) -> int:
        """Side in pixels of the largest image that the VAE decodes as one tile."""

    @property
    def prediction_type(self) -> str:
        """Prediction type of the denoiser, as diffusers' schedulers call it."""
        return self.process.prediction_type

    @property
    def fingerprint(self) -> str:
        """Hash of all weights that decide an image."""
        from hashlib import sha256

        return sha256("".join(f"{k}={v};" for k, v in sorted(self.fingerprints.items())).encode()).hexdigest()

    @property
    def models(self) -> "LazyModules":
        """Modules that adapters may go into, by component: the denoiser and the text encoders."""
        return self.modules.without("vae")

    @property
    def vae(self) -> "nn.Module":
        """Autoencoder between pixels and latents. No adapter goes into it."""
        return self.modules["vae"]

    @property
    def denoiser_module(self) -> Any:
        """Module that predicts."""
        return self.modules[self.denoiser]

    @property
    def text_encoders(self) -> "LazyModules":
        """Modules that read texts, by component."""
        return self.modules.without("vae", self.denoiser)

    @property
    def device(self) -> "torch.device":
        """Device of the denoiser."""
        return self.modules.device_of(self.denoiser)

    @property
    def dtype(self) -> "torch.dtype":
        """Precision of the denoiser."""
        # Not diffusers' ``dtype``, which walks over every layer: several milliseconds a step.
        return next(weight.dtype for weight in self.denoiser_module.parameters() if weight.is_floating_point())

    def to(self, device: "torch.device | str | None" = None, dtype: "torch.dtype | None" = None) -> "Family":
        """Move every module; ``dtype`` changes the base weights' precision. Call it before adapters go in."""
        for name in self.modules:
            self.modules.place(name, device, None if name == "vae" and not self.vae_fp16_ok else dtype)
        return self


def weights_fingerprint(module: "nn.Module") -> str:
    """Return SHA-256 over each weight's name and shape and 64 of its values, evenly spread.

    Whole files would take minutes on a full-size model; a fine-tune changes every layer, so a sample tells two models
    apart as surely.
    """
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().flatten()
        count = min(64, values.numel())
        indices = [index * (values.numel() - 1) // max(count - 1, 1) for index in range(count)]
        sample = values[torch.tensor(indices, dtype=torch.int64, device=values.device)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()
