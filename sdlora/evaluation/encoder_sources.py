"""Models that compare images, by name: which suits a base model, and where its files are. No torch."""

from pathlib import Path
from typing import NamedTuple

from sdlora.data.settings import Kind
from sdlora.errors import ModelError
from sdlora.events import OnEvent
from sdlora.families.base_models import BUNDLED
from sdlora.families.hub import cached_folder, fetch_files
from sdlora.families.hub_download import download_files
from sdlora.families.settings import Model, trimmed_base
from sdlora.families.untrusted_folder import read_config
from sdlora.formatting import one_line
from sdlora.vision.model_source import locate_model

POCKET = "pocket"
"""The bundled CLIP, which knows the bundled base's world alone."""
HUB_CLIP = "openai/clip-vit-large-patch14"
HUB_DINO = "facebook/dinov2-base"
CLIP, DINOV2 = "clip", "dinov2"
"""Kinds of models, as their configs name them."""
KINDS_ARE = "give pocket, or a folder or a hub id with a CLIP or a DINOv2"
WEIGHTS = "model*.safetensors"
HUB_FILES = (
    "config.json", "preprocessor_config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    WEIGHTS, "model.safetensors.index.json",
)  # fmt: skip


class EncoderNames(NamedTuple):
    """Names of the model that compares images, and of the one that compares them with prompts."""

    encoder: str
    clip: str


class EncoderSource(NamedTuple):
    """Kind and folder of a model on this machine."""

    kind: str
    folder: Path

    @property
    def is_bundled(self) -> bool:
        return self.folder == BUNDLED[POCKET] / "clip"


class EncoderSources(NamedTuple):
    """The model that compares images, and the one that compares them with prompts."""

    encoder: EncoderSource
    clip: EncoderSource


DEFAULTS: dict[Kind, EncoderNames] = {
    "style": EncoderNames(HUB_CLIP, HUB_CLIP),
    "subject": EncoderNames(HUB_DINO, HUB_CLIP),
}
"""Models for bases of the real world: a look is told by a CLIP, one subject from others of its class by a DINOv2."""


def choose_encoders(base: str, kind: Kind, encoder: str = "", clip: str = "") -> EncoderNames:
    """Return the models for an adapter of ``kind`` on ``base``; those that are named stay."""
    suited = EncoderNames(POCKET, POCKET) if trimmed_base(base) in BUNDLED else DEFAULTS[kind]
    return EncoderNames(encoder or suited.encoder, clip or suited.clip)


def require_encoders(names: EncoderNames) -> None:
    """Raise ModelError if one of ``names`` cannot be a model for its purpose. A hub id is not asked for."""
    for name in names:
        locate_encoder(name)
    _require_reader(names.clip, locate_encoder(names.clip))


def missing_encoders(names: EncoderNames) -> list[str]:
    """Return those of ``names`` that would be downloaded. Raises ModelError for what is no model."""
    return [name for name in dict.fromkeys(names) if locate_encoder(name) is None and not _is_cached(name)]


def _is_cached(name: str) -> bool:
    folder = cached_folder(name)
    return folder is not None and any(folder.glob(WEIGHTS))


def fetch_encoders(names: EncoderNames, on_event: OnEvent) -> EncoderSources:
    """Return where the models called ``names`` are; those of a hub are downloaded. Raises ModelError."""
    found = EncoderSources(*(_fetch(name, on_event) for name in names))
    _require_reader(names.clip, found.clip)
    return found


def locate_encoder(name: str) -> EncoderSource | None:
    """Find the model called ``name``, without loading it; None for a hub id. Raises ModelError for neither."""
    if trimmed_base(name) == POCKET:
        return EncoderSource(CLIP, BUNDLED[POCKET] / "clip")
    folder = locate_model(name, f"is no model that compares images; {KINDS_ARE}")
    return EncoderSource(kind_of(folder), folder) if folder else None


def kind_of(folder: Path) -> str:
    """Return the kind of the model in ``folder``. Raises ModelError for any other model, and for none."""
    named = read_config(folder / "config.json").get("model_type")
    if named not in (CLIP, DINOV2):
        raise ModelError(f"{folder}: is {one_line(str(named))!r}, which compares no images here; {KINDS_ARE}")
    return str(named)


def _fetch(name: str, on_event: OnEvent) -> EncoderSource:
    """Return the model called ``name``; of a hub id, what says its kind is fetched before its weights."""
    if found := locate_encoder(name):
        return found
    model = Model(base=name)
    kind = kind_of(fetch_files(model, ("config.json",)))
    return EncoderSource(kind, download_files(model, HUB_FILES, on_event))


def _require_reader(name: str, source: EncoderSource | None) -> None:
    if source is not None and source.kind == DINOV2:
        raise ModelError(f"{one_line(name)!r}: is a DINOv2, which reads no prompts; give a CLIP as clip")
