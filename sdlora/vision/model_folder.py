"""Models of transformers, loaded from a folder as data alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdlora.errors import ModelError, SdloraError
from sdlora.families.loading import quiet_libraries
from sdlora.families.untrusted_folder import require_data_only_model
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formatting import first_line
from sdlora.generation.device import choose_dtype


def require_safe_model(folder: Path) -> None:
    """Raise ModelError for a folder that names code or has no weights that can be read safely, FormatError for a file
    cut short.
    """
    require_data_only_model(folder)
    files = [*folder.glob("*.safetensors")]
    if not files:
        pickled = any(folder.glob("*.bin"))
        found = "only .bin files, which can run code when they are opened" if pickled else "no .safetensors weights"
        raise ModelError(f"{folder}: has {found}; take one that has .safetensors, or convert it")
    for file in files:
        read_safetensors_header(file)


def load_model(
    folder: Path, model_class: str, tokenizer_class: str, title: str, device: torch.device
) -> tuple[Any, Any]:
    """Return the model and the tokenizer in ``folder``, by the names of their classes in transformers.

    ``title`` names the kind of model. Raises ModelError if it cannot be loaded, or lacks tensors.
    """
    with _loading(folder, title):
        tokenizer = _transformers(tokenizer_class).from_pretrained(folder, local_files_only=True)
    return load_weights(folder, model_class, title, device), tokenizer


def load_weights(folder: Path, model_class: str, title: str, device: torch.device) -> Any:
    """Return the model in ``folder``, which needs no tokenizer. Arguments and errors are those of ``load_model``."""
    with _loading(folder, title):
        model, found = _transformers(model_class).from_pretrained(
            folder, dtype=choose_dtype("auto", device), local_files_only=True, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{folder}: lacks {len(missing)} tensors of a {title}, such as {missing[0]}")
    return model.to(device).eval()


@contextmanager
def _loading(folder: Path, title: str) -> Iterator[None]:
    """Raise ModelError for anything that a library raises of a stranger's configs and tensors within this context."""
    try:
        with quiet_libraries():
            yield
    except (SdloraError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{folder}: cannot be loaded as {title}: {first_line(error)}") from error


def _transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
