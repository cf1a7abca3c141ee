"""Names of the models that compare images, and which of them suits a base model. No torch."""

from typing import NamedTuple

from sdlora.data.settings import Kind
from sdlora.families.base_models import BUNDLED
from sdlora.families.settings import trimmed_base

POCKET = "pocket"
"""The bundled CLIP, which knows the bundled base's world alone."""
HUB_CLIP = "openai/clip-vit-large-patch14"
HUB_DINO = "facebook/dinov2-base"


class EncoderNames(NamedTuple):
    """Names of the model that compares images, and of the one that compares them with prompts."""

    encoder: str
    clip: str


DEFAULTS: dict[Kind, EncoderNames] = {
    "style": EncoderNames(HUB_CLIP, HUB_CLIP),
    "subject": EncoderNames(HUB_DINO, HUB_CLIP),
}
"""Models for bases of the real world: a look is told by a CLIP, one subject from others of its class by a DINOv2."""


def choose_encoders(base: str, kind: Kind, encoder: str = "", clip: str = "") -> EncoderNames:
    """Return the models for an adapter of ``kind`` on ``base``; those that are named stay."""
    suited = EncoderNames(POCKET, POCKET) if trimmed_base(base) in BUNDLED else DEFAULTS[kind]
    return EncoderNames(encoder or suited.encoder, clip or suited.clip)
