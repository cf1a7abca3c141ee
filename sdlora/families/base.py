"""What a family of base models can do, and all that the rest of the program knows of one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdlora.diffusion.process import NoiseProcess

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What steers the UNet: ``text`` (B, L, D), and what some families add to it."""

    text: "torch.Tensor"
    pooled: "torch.Tensor | None" = None
    """(B, P): the text as a whole, which SDXL's UNet is told too."""

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Its tensors by name: ``Conditioning(**parts)`` is the same again."""
        return {"text": self.text} if self.pooled is None else {"text": self.text, "pooled": self.pooled}

    def to(self, *to: Any) -> "Conditioning":
        """The same on a device, or in a precision."""
        return Conditioning(**{name: tensor.to(*to) for name, tensor in self.tensors().items()})

    def select_rows(self, numbers: Sequence[int]) -> "Conditioning":
        """The batch of these rows, each as often as it is named.

        Stacked, not indexed: indexing adds gradients up in the order in which threads come, which changes their bits.
        """
        import torch

        parts = self.tensors().items()
        return Conditioning(**{name: torch.stack([tensor[number] for number in numbers]) for name, tensor in parts})

    @staticmethod
    def cat(several: "Sequence[Conditioning]") -> "Conditioning":
        """One batch of ``several``, in their order."""
        import torch

        parts = [one.tensors() for one in several]
        return Conditioning(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def to_device_async(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """``tensor`` on ``device``, without waiting for what that still computes (CUDA: from pinned memory alone)."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Family(ABC):
    """A loaded base model of one family.

    Pixels are (B, 3, H, W) in [-1, 1]; latents (B, 4, H / factor, W / factor) carry the VAE's
    scaling factor already; timesteps are (B,) int64.
    """

    name: ClassVar[str]
    """The family's key in ``FAMILIES``."""
    parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    """The folders of a model in diffusers' layout."""
    vae_fp16_ok: ClassVar[bool] = True
    """Whether the VAE works in half precision: SDXL's own gives infinite values there, and stays in float32."""
    source: str
    """Where it came from, as the user wrote it."""
    fingerprints: Mapping[str, str]
    """A hash of the weights of each component (``unet``, ``vae``, ``text_encoder``): caches are kept by it."""
    prediction_type: PredictionType
    native_size: int
    """Side in pixels of the pictures that the model was trained on."""
    latent_factor: int
    """Pixels per latent, along each side."""
    size_step: int
    """Sides of pictures are multiples of this: the VAE's factor times the UNet's."""

    @property
    @abstractmethod
    def models(self) -> dict[str, "nn.Module"]:
        """What adapters may go into, by component: ``unet``, ``text_encoder``, ..."""

    @property
    @abstractmethod
    def vae(self) -> "nn.Module":
        """The autoencoder between pixels and latents. No adapter goes into it."""

    @property
    @abstractmethod
    def process(self) -> "NoiseProcess":
        """Noise process that the model was trained on, on the CPU: times, noise, target and weights of a step."""

    @property
    @abstractmethod
    def scheduler_config(self) -> dict[str, Any]:
        """The model's own scheduler configuration (betas, prediction type), as diffusers keeps it."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Token ids (B, L) int64 on the CPU, cut or padded to the text encoder's length."""

    @abstractmethod
    def bare_token_ids(self, text: str) -> list[int]:
        """The token ids of ``text`` alone: neither cut nor padded, without the marks of beginning and end."""

    @abstractmethod
    def build_input_ids(self, tokens: Sequence[int]) -> "torch.Tensor":
        """Token ids (1, L) int64 of bare ``tokens``, at most L - 2, with marks and padding as ``tokenize`` has them."""

    @property
    @abstractmethod
    def text_layers(self) -> int:
        """The most that ``clip_skip`` can be: so many layers of text can be read."""

    @abstractmethod
    def encode_text(self, ids: "torch.Tensor", clip_skip: int = 1) -> Conditioning:
        """What the UNet reads of token ``ids`` (B, L) int64: ``text`` is (B, L, D). Gradients flow if it trains.

        ``clip_skip`` is the layer that is read, counted back from the one that the base was trained with, which is 1.
        """

    @abstractmethod
    def encode_images(self, pixels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Mean and standard deviation of the latents, both (B, 4, H / factor, W / factor), scaled."""

    @abstractmethod
    def predict(
        self,
        latents: "torch.Tensor",
        timesteps: "torch.Tensor",
        conditioning: Conditioning,
        size_and_crop: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """The UNet's prediction for noisy ``latents``, of their shape.

        ``size_and_crop`` (B, 4) int64 is for families that are told it: height and width in pixels of the pictures
        before they were cut, and top and left of the cut in the scaled picture. None: they are whole.
        """

    @abstractmethod
    def pipeline_kwargs(self, wanted: Conditioning, unwanted: Conditioning | None) -> dict[str, Any]:
        """What a prompt and, with guidance, a negative prompt are to a call of ``pipeline``."""

    @abstractmethod
    def pipeline(self, scheduler: Any) -> Any:
        """A diffusers pipeline over these very modules (nothing is copied) with ``scheduler``."""

    @property
    def fingerprint(self) -> str:
        """A hash of all the weights that decide a picture."""
        from hashlib import sha256

        return sha256("".join(f"{k}={v};" for k, v in sorted(self.fingerprints.items())).encode()).hexdigest()

    @property
    def device(self) -> "torch.device":
        return next(self.models["unet"].parameters()).device

    def to(self, device: "torch.device | str | None" = None, dtype: "torch.dtype | None" = None) -> "Family":
        """Move every module; ``dtype`` changes the base weights' precision. Call it before adapters go in."""
        for module in (*self.models.values(), self.vae):
            own = next(module.parameters())
            stays = dtype in (None, own.dtype) or (module is self.vae and not self.vae_fp16_ok)
            module.to(device or own.device, *(() if stays else (dtype,)))
        return self


def weights_fingerprint(module: "nn.Module") -> str:
    """SHA-256 over each weight's name and shape and 64 of its values, evenly spread.

    Whole files would take minutes on a full-size model; a fine-tune changes every layer, so a
    sample tells two models apart as surely.
    """
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().flatten()
        count = min(64, values.numel())
        places = [place * (values.numel() - 1) // max(count - 1, 1) for place in range(count)]
        sample = values[torch.tensor(places, dtype=torch.int64, device=values.device)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()
