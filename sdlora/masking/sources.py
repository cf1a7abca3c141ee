"""Find the segmenter that a name stands for, and load it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.errors import ConfigError, ModelError
from sdlora.events import OnEvent, ignore
from sdlora.families.hub import fetch_files
from sdlora.families.hub_download import download_files
from sdlora.families.settings import Model, trimmed_base
from sdlora.families.untrusted_folder import read_config, require_data_only_model
from sdlora.formatting import one_line
from sdlora.masking import segmenter_class
from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import FACES, HUB_SEGMENTER, MaskSettings
from sdlora.vision.model_source import locate_model

if TYPE_CHECKING:
    import torch

ONNX = ".onnx"
KINDS_ARE = f"give the folder of a CLIPSeg (as {HUB_SEGMENTER} is), an {ONNX} file as rembg has them, or {FACES}"


class SegmenterSource(NamedTuple):
    """Kind of a segmenter on this machine, and its folder or file."""

    kind: str
    path: Path


def load_segmenter(settings: MaskSettings, device: "torch.device", on_event: OnEvent = ignore) -> Segmenter:
    """Load the segmenter that ``settings.model`` names; ``on_event`` gets the progress of a download.

    Raises ModelError for what is none, or cannot be fetched, ConfigError for what it needs besides.
    """
    found = locate_segmenter(settings.model)
    if found is None:
        found = _fetch(Model(base=settings.model, revision=settings.revision), on_event)
    return segmenter_class(found.kind).load(found.path, settings, device)


def locate_segmenter(model: str) -> SegmenterSource | None:
    """Find the segmenter that ``model`` names, without loading it; None for a hub id. Raises ModelError for neither."""
    name = trimmed_base(model)
    if name == FACES:
        return SegmenterSource(FACES, Path())
    path = locate_model(name, f"is no segmenter; {KINDS_ARE}", (ONNX,))
    return SegmenterSource(kind_of(path), path) if path else None


def require_segmenter(settings: MaskSettings) -> None:
    """Raise ModelError if ``settings.model`` names no segmenter, ConfigError if it lacks words."""
    found = locate_segmenter(settings.model)
    if found is None or found.kind == "clipseg":
        require_words(settings)


def require_words(settings: MaskSettings) -> None:
    """Raise ConfigError if nothing says what a CLIPSeg is to look for."""
    if not settings.asked:
        raise ConfigError("words is empty, and so is class_name; say what a CLIPSeg is to look for, such as `a dog`")


def _fetch(model: Model, on_event: OnEvent) -> SegmenterSource:
    """Fetch a hub's repository: at first what says its kind, then the files that its kind reads."""
    kind = kind_of(fetch_files(model, ("config.json",)))
    return SegmenterSource(kind, download_files(model, segmenter_class(kind).hub_files, on_event))


def kind_of(path: Path) -> str:
    """Return the kind of the segmenter at ``path``. Raises ModelError for any other model, and for none."""
    if path.is_file() or (not (path / "config.json").exists() and any(path.glob(f"*{ONNX}"))):
        return "onnx"
    if not (path / "config.json").exists():
        raise ModelError(f"{path}: is no segmenter: it has neither a config.json nor an {ONNX} file; {KINDS_ARE}")
    require_data_only_model(path)
    named = read_config(path / "config.json").get("model_type")
    if named != "clipseg":
        raise ModelError(f"{path}: is no segmenter that is read here, but {one_line(str(named))!r}; {KINDS_ARE}")
    return named
