"""From what a user wrote for the base model (a name, a folder, a file, a hub id) to a loaded family."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdlora.errors import FormatError, ModelError, SdloraError, first_line
from sdlora.families import FAMILIES, original
from sdlora.families.catalog import find_model, list_models, model_folders
from sdlora.families.detect import USUAL_SIZE, detect_file, detect_folder, folder_size, hub_size, require_served
from sdlora.families.hub import fetch_files
from sdlora.families.settings import Model
from sdlora.families.vocabulary import load_tokenizers
from sdlora.files import PICKLES, existing_path, read_safetensors_header

if TYPE_CHECKING:
    from sdlora.families.base import Family

BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket"}
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Of a family's parts those with weights."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """Where a base model lies: a bundled or own folder, one file, or a repository of the hub."""

    kind: Literal["folder", "file", "hub"]
    location: str


def locate_base(base: str) -> ModelSource:
    """Decide what ``base`` names, without loading it. Raises ModelError if it can be nothing."""
    if base in BUNDLED:
        return ModelSource("folder", str(BUNDLED[base]))
    path, suffix = existing_path(base), Path(base).suffix.lower()
    if suffix in PICKLES:
        raise ModelError(f"{base}: this kind of file can run code when it is opened; convert it to .safetensors first")
    path = path or find_model(base, model_folders())
    if path is not None and path.is_dir():
        return ModelSource("folder", str(path))
    if path is not None and path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise ModelError(f"{base}: is no base model; give a diffusers folder, a .safetensors file or a hub id")
        return ModelSource("file", str(path))
    if HUB_ID.fullmatch(base) and suffix != ".safetensors":
        return ModelSource("hub", base)
    raise ModelError(f"model.base: there is no {base!r}; {_hint(base)}")


def _hint(base: str) -> str:
    """The nearest name that there is, or what can be given."""
    near = difflib.get_close_matches(base, [*BUNDLED, *(found.name for found in list_models(model_folders()))], n=1)
    kinds = f"give {', '.join(BUNDLED)}, a folder, a .safetensors file or a hub id"
    return f"did you mean {near[0]}?" if near else kinds


def native_size(base: str) -> int:
    """The side in pixels that ``base`` draws best, as far as can be told without loading it.

    Raises ModelError for what can be no base model.
    """
    source = locate_base(base)
    if source.kind == "hub":
        return hub_size(base)
    if source.kind == "folder":
        return folder_size(Path(source.location))
    family = detect_file(Path(source.location))
    return folder_size(original.config_folder(family)) if family in FAMILIES else USUAL_SIZE


def family_of(base: str) -> str:
    """The family of ``base`` without loading it: of a hub id, as its name suggests; empty for what cannot be told."""
    with suppress(ModelError, FormatError):
        source = locate_base(base)
        if source.kind == "folder":
            return detect_folder(Path(source.location))
        if source.kind == "file":
            return detect_file(Path(source.location))
        return "sdxl" if "xl" in base.rpartition("/")[2].lower() else ""
    return ""


def load_family(model: Model) -> "Family":
    """Load the base model. Weights come in float32 on the CPU; move them with ``Family.to``.

    Raises ModelError for what is missing, unknown, gated, offline or of a family not served.
    """
    source = locate_base(model.base)
    if source.kind == "hub":  # With the libraries' own bars: a download may take minutes.
        return _load_hub(model)
    with quiet_libraries():
        if source.kind == "folder":
            return _load_folder(Path(source.location), model)
        return _load_file(Path(source.location), model)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars for what takes a second, no advice on optional packages; errors are raised as ever."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _load_folder(folder: Path, model: Model) -> "Family":
    family: Any = FAMILIES[require_served(detect_folder(folder), model.base)]
    missing = [part for part in family.parts if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{model.base}: the part {', '.join(missing)} is missing in {folder}")
    for part in (part for part in WEIGHTED if part in family.parts):
        _require_weights(folder / part, model)
    if model.variant and not any(folder.glob(f"*/*.{model.variant}[.-]*")):
        raise ModelError(f"{model.base}: has no {model.variant} weights; leave model.variant out")
    try:
        return family.load(folder, model.base, model.schedule, variant=model.variant, local_files_only=True)
    except (SdloraError, MemoryError):
        raise
    except Exception as error:  # A stranger's configs and tensors: the libraries raise almost anything.
        raise ModelError(f"{model.base}: cannot be loaded: {first_line(error)}") from error


def _require_weights(part: Path, model: Model) -> None:
    """Raises ModelError for a part without weights that can be read safely, FormatError for a file cut short."""
    files = [*part.glob("*.safetensors")]
    if not files:
        pickled = any(part.glob("*.bin"))
        kind = f"{model.variant} " if model.variant else ""
        remedy = (
            "holds only .bin files; convert them to .safetensors" if pickled else f"has no {kind}.safetensors weights"
        )
        hint = "; leave model.variant out" if kind and not pickled else ""
        raise ModelError(f"{model.base}: the part {part.name} {remedy}{hint}")
    for file in files:
        read_safetensors_header(file)  # Raises for a file that is cut short, naming it.


def _load_file(file: Path, model: Model) -> "Family":
    """From one file of the original layout. Its configs are bundled; its vocabulary is found before it is read."""
    name = original.family_of_complete_file(file)
    family: Any = FAMILIES[name]
    config = original.config_folder(name, model.prediction_type)
    words = load_tokenizers(config, dict(zip(family.tokenizers, family.encoders, strict=True)), model.tokenizer)
    try:
        return family.load_single_file(
            file, config, words, model.base, {**original.marked_schedule(file), **model.schedule}
        )
    except NotImplementedError as error:  # Layers of the UNet or the VAE got no weights, and cannot be moved.
        raise ModelError(
            f"{model.base}: lacks tensors that an {name} model has; it was cut down, or is of another architecture"
        ) from error
    except (SdloraError, MemoryError):
        raise
    except Exception as error:  # Likewise.
        raise ModelError(f"{model.base}: cannot be loaded as {name}: {first_line(error)}") from error


def _load_hub(model: Model) -> "Family":
    """From a hub's repository, downloaded or cached. Only configs, the tokenizer and safetensors are fetched."""
    variants = [f"*.{model.variant}.safetensors", f"*.{model.variant}-*.safetensors"] if model.variant else []
    others = () if model.variant else ("*/*.fp16.*", "*/*.fp16-*", "*/*.non_ema.*")
    weights = [f"{part}/{ending}" for part in WEIGHTED for ending in variants or ["*.safetensors"]]
    folder = fetch_files(model, ("model_index.json", "*/*.json", "*/*.txt", *weights), others)
    with quiet_libraries():
        return _load_folder(folder, model)
