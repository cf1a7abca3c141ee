"""Find the captioner that a name stands for, the bundled one, a folder or a hub id, and load it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.captioning import KINDS, captioner_class
from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.errors import ConfigError, ModelError
from sdlora.events import OnEvent, ignore
from sdlora.families.base_models import BUNDLED
from sdlora.families.hub import fetch_files
from sdlora.families.hub_download import download_files
from sdlora.families.known_words import KnownWords, known_words
from sdlora.families.settings import Model, trimmed_base
from sdlora.families.untrusted_folder import read_config, require_data_only_model
from sdlora.formatting import one_line
from sdlora.vision.model_source import locate_model

if TYPE_CHECKING:
    import torch

HUB_CAPTIONER = "Salesforce/blip-image-captioning-large"
"""Captioner for bases of the real world: a BLIP whose repository has safetensors. Fetched only when it is named."""
FLORENCE = "florence-community/Florence-2-base"
"""Repository of a Florence-2 in the layout of transformers' own classes."""
TAGS = "selected_tags.csv"
"""File by which a tagger's folder is known."""
FIRST_FILES = ("config.json", TAGS)
"""Files of the hub that say of which kind a model is."""


def default_captioner(base: str) -> str:
    """Return the captioner that suits ``base``: its own, if it brings one, else a hub id."""
    base = trimmed_base(base)
    return base if _captioned_world(base) else HUB_CAPTIONER


def require_captioner(model: str, base: str) -> None:
    """Raise ConfigError if the captioner ``model`` knows another world than ``base`` alone, naming one to take."""
    words, default = _captioned_world(model), default_captioner(base)
    if words and words != _captioned_world(base):
        remedy = f"take {default}, which is downloaded once, or the folder of a captioner"
        raise ConfigError(f"model = {model!r}: knows its own small world alone, and not that of {base}; {remedy}")


def _captioned_world(base: str) -> KnownWords | None:
    """Return the words of a bundled base, whose captioner says no others; None for any other base."""
    return known_words(base) if trimmed_base(base) in BUNDLED else None


def load_captioner(settings: CaptionSettings, device: "torch.device", on_event: OnEvent = ignore) -> Captioner:
    """Load the captioner that ``settings.model`` names; ``on_event`` gets the progress of a download.

    Raises ModelError for what is none, or cannot be fetched.
    """
    found = locate_captioner(settings.model)
    if found is None:
        return _load_hub(Model(base=settings.model, revision=settings.revision), settings, device, on_event)
    return captioner_class(found.kind).load(found.folder, settings, device)


class CaptionerSource(NamedTuple):
    """Kind and folder of a captioner on this machine."""

    kind: str
    folder: Path


def locate_captioner(model: str) -> CaptionerSource | None:
    """Find the captioner that ``model`` names, without loading it; None for a hub id. Raises ModelError for neither."""
    name = trimmed_base(model)
    if name in BUNDLED:
        return CaptionerSource(name, BUNDLED[name] / "clip")
    folder = locate_model(name, "is no captioner; give pocket, a folder, or a hub id")
    return CaptionerSource(kind_of(folder), folder) if folder else None


def _load_hub(model: Model, settings: CaptionSettings, device: "torch.device", on_event: OnEvent) -> Captioner:
    """Load a hub's repository: at first what says its kind is fetched, then the files that its kind reads."""
    kind = captioner_class(kind_of(fetch_files(model, FIRST_FILES)))
    return kind.load(download_files(model, kind.hub_files, on_event), settings, device)


def kind_of(folder: Path) -> str:
    """Return the kind of the captioner in ``folder``. Raises ModelError for any other model, and for none."""
    if (folder / TAGS).is_file():
        return "wd14"
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder}: is no captioner: it has neither a config.json nor a {TAGS}; {_kinds()}")
    config = read_config(folder / "config.json")
    named = config.get("model_type")
    if named == "florence2" and config.get("auto_map"):
        raise ModelError(f"{folder}: is a Florence-2 that brings code, which is never run; take {FLORENCE}")
    require_data_only_model(folder)
    if named not in KINDS:
        raise ModelError(f"{folder}: is no captioner that is read here, but {one_line(str(named))!r}; {_kinds()}")
    return str(named)


def _kinds() -> str:
    return "give the folder of a BLIP, of a Florence-2, or of a WD14 tagger (model.onnx and selected_tags.csv)"
