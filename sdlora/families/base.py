"""What a family of base models can do, and all that the rest of the program knows of one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What steers the UNet: ``text`` (B, L, D), and what some families add to it."""

    text: "torch.Tensor"

    def to(self, *args: Any, **kwargs: Any) -> "Conditioning":
        return Conditioning(self.text.to(*args, **kwargs))


class Family(ABC):
    """A loaded base model of one family.

    Pixels are (B, 3, H, W) in [-1, 1]; latents (B, 4, H / factor, W / factor) carry the VAE's
    scaling factor already; timesteps are (B,) int64.
    """

    name: ClassVar[str]
    """The family's key in ``FAMILIES``."""
    source: str
    """Where it came from, as the user wrote it."""
    fingerprint: str
    """A hash of what it computes: caches are kept by it."""
    prediction_type: PredictionType
    native_size: int
    """Side in pixels of the pictures that the model was trained on."""
    latent_factor: int
    """Pixels per latent, along each side."""

    @property
    @abstractmethod
    def models(self) -> dict[str, "nn.Module"]:
        """What adapters may go into, by component: ``unet``, ``text_encoder``, ..."""

    @property
    @abstractmethod
    def vae(self) -> "nn.Module": ...

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> "torch.Tensor":
        """Token ids (B, L) int64 on the CPU, cut or padded to the text encoder's length."""

    @abstractmethod
    def encode_text(self, ids: "torch.Tensor") -> Conditioning:
        """Runs the text encoders; gradients flow if they train."""

    @abstractmethod
    def encode_images(self, pixels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Mean and standard deviation of the latents, both (B, 4, H / factor, W / factor), scaled."""

    @abstractmethod
    def predict(self, latents: "torch.Tensor", timesteps: "torch.Tensor", conditioning: Conditioning) -> "torch.Tensor":
        """The UNet's prediction for noisy ``latents``, of their shape."""

    @abstractmethod
    def pipeline(self, scheduler: Any) -> Any:
        """A diffusers pipeline over these very modules (nothing is copied) with ``scheduler``."""

    @property
    @abstractmethod
    def scheduler_config(self) -> dict[str, Any]:
        """The model's own scheduler configuration (betas, prediction type), as diffusers keeps it."""

    def to(self, device: "torch.device | str", dtype: "torch.dtype | None" = None) -> "Family":
        """Move every module; ``dtype`` changes the base weights' precision."""
        for module in (*self.models.values(), self.vae):
            module.to(device=device, dtype=dtype)
        return self
