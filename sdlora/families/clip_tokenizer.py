"""CLIP's vocabulary, which single files lack: from a folder, or from the hub once and its cache ever after.

All Stable Diffusion models cut words alike: OpenCLIP took over CLIP's vocabulary (arXiv:2103.00020). They differ in the
token that fills a text up, which the bundled configs tell.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError
from sdlora.families.base_models import model_folders
from sdlora.families.hub import explain_hub_error
from sdlora.families.untrusted_folder import require_data_only_tokenizer
from sdlora.formatting import first_line

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
MARKS = ("model_max_length", "bos_token", "eos_token", "unk_token", "pad_token")
TOKENIZER_FOLDER = "tokenizer"
"""A folder of this name in a models folder is looked into before the hub is asked."""


def load_tokenizers(config: Path, encoders: Mapping[str, str], own: Path | None) -> dict[str, Any]:
    """CLIP tokenizers by component, with the marks and the length that ``config`` states for each.

    ``encoders`` are the text encoders by the tokenizer that they read from; ``own`` is the folder that the user named.
    Raises ModelError for a vocabulary that cannot be had, or is of another size than an encoder's.
    """
    place = _named_folder(own) if own else _model_folder_tokenizer() or _downloaded()
    found = {}
    for name, encoder in encoders.items():
        found[name] = _tokenizer(place, config / name)
        wanted = json.loads((config / encoder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        if len(found[name]) != wanted:
            raise ModelError(
                f"{place}: is a vocabulary of {len(found[name])} pieces, but the model's {encoder} has {wanted}; "
                f"set model.tokenizer to the folder of CLIP's own ({REPOSITORY})"
            )
    return found


def _named_folder(folder: Path) -> Path:
    """The folder that holds a vocabulary: the one that was named, or ``tokenizer`` of a diffusers model."""
    for place in (folder, folder / "tokenizer"):
        if _holds(place):
            return place
    raise ModelError(
        f"model.tokenizer: {folder} holds no vocabulary; give a folder with {' and '.join(FILES)} (or tokenizer.json), "
        "or a diffusers model that has one"
    )


def _holds(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES) or (folder / "tokenizer.json").is_file()


def _model_folder_tokenizer() -> Path | None:
    return next((place for folder in model_folders() if _holds(place := folder / TOKENIZER_FOLDER)), None)


def _downloaded() -> Path:
    """The folder in the hub's cache, filled if it is not there."""
    from huggingface_hub import hf_hub_download

    try:
        paths = [Path(hf_hub_download(REPOSITORY, name)) for name in FILES]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"a single file lacks CLIP's vocabulary ({REPOSITORY}): {explain_hub_error(error).partition(';')[0]}; "
            "go online once, set HF_HOME to a cache that has it, or set model.tokenizer to a folder with "
            f"{' and '.join(FILES)} (or put one into the models folder, as {TOKENIZER_FOLDER})"
        ) from error
    return paths[0].parent


def _tokenizer(folder: Path, stated: Path) -> Any:
    from transformers import CLIPTokenizer

    require_data_only_tokenizer(folder)
    told = json.loads((stated / "tokenizer_config.json").read_text(encoding="utf-8"))
    marks = {name: told[name] for name in MARKS}
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **marks)
    except Exception as error:  # The library's own reader raises nothing more exact.
        raise ModelError(f"{folder}: its vocabulary cannot be read: {first_line(error)}") from error
