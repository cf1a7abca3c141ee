"""Loading of a family from what a user wrote for the base model: a name, a folder, a file or a hub id."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.errors import ModelError, SdloraError
from sdlora.families import FAMILIES, single_file
from sdlora.families.clip_tokenizer import load_tokenizers
from sdlora.families.detect import detect_folder, require_served
from sdlora.families.hub import fetch_files, wanted_files
from sdlora.families.settings import Model
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formatting import first_line

if TYPE_CHECKING:
    import torch

    from sdlora.families.base import Family
from sdlora.families.base_models import locate_base


def load_family(model: Model, dtype: "torch.dtype | None" = None) -> "Family":
    """Load the base model on the CPU: its VAE in float32, all else in ``dtype`` (float32 if None).

    Raises ModelError for what is missing, unknown, gated, offline or of a family not served.
    """
    source = locate_base(model.base)
    if source.kind == "hub":  # With the libraries' own bars: a download may take minutes.
        return _load_hub(model, dtype)
    with quiet_libraries():
        if source.kind == "folder":
            return _load_folder(Path(source.location), model, dtype)
        return _load_file(Path(source.location), model, dtype)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars and advice on optional packages; errors are raised as ever."""
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


def _load_folder(folder: Path, model: Model, dtype: "torch.dtype | None") -> "Family":
    family: Any = FAMILIES[require_served(detect_folder(folder), model.base)]
    missing = [part for part in (*family.components, "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{model.base}: the part {', '.join(missing)} is missing in {folder}")
    for name, component in family.components.items():
        if component.weights:
            _require_weights(folder / name, model)
    if model.variant and not any(folder.glob(f"*/*.{model.variant}[.-]*")):
        raise ModelError(f"{model.base}: has no {model.variant} weights; leave model.variant out")
    try:
        return family.load(folder, model.base, model.schedule, dtype, model.variant)
    except (SdloraError, MemoryError):
        raise
    except Exception as error:  # A stranger's configs and tensors: the libraries raise almost anything.
        raise ModelError(f"{model.base}: cannot be loaded: {first_line(error)}") from error


def _require_weights(part: Path, model: Model) -> None:
    """Raise ModelError for a part without weights that can be read safely, FormatError for a file cut short."""
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


def _load_file(file: Path, model: Model, dtype: "torch.dtype | None") -> "Family":
    """Load one file of the original layout. Its configs are bundled; its vocabulary is found before it is read."""
    name = single_file.family_of_complete_file(file)
    family: Any = FAMILIES[name]
    config = single_file.config_folder(name, model.prediction_type)
    tokenizers = load_tokenizers(config, family.tokenizers, model.tokenizer)
    try:
        return family.load_single_file(
            file,
            config,
            tokenizers,
            model.base,
            {**single_file.marked_schedule(file), **model.schedule},
            dtype,
        )
    except NotImplementedError as error:  # Layers of the UNet or the VAE got no weights, and cannot be moved.
        raise ModelError(
            f"{model.base}: lacks tensors that an {name} model has; it was cut down, or is of another architecture"
        ) from error
    except (SdloraError, MemoryError):
        raise
    except Exception as error:  # Likewise.
        raise ModelError(f"{model.base}: cannot be loaded as {name}: {first_line(error)}") from error


def _load_hub(model: Model, dtype: "torch.dtype | None") -> "Family":
    """Load a hub's repository, downloaded or cached. Only configs, the tokenizer and safetensors are fetched."""
    folder = fetch_files(model, *wanted_files(model))
    with quiet_libraries():
        return _load_folder(folder, model, dtype)
