"""CLIP's vocabulary, which single files lack: from a folder, or from the hub and its cache.

All Stable Diffusion models split words alike: OpenCLIP took over CLIP's vocabulary (arXiv:2103.00020). They differ in
the padding token, which the bundled configs name.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError
from sdlora.families.base_models import locate_base, model_folders
from sdlora.families.hub import explain_hub_error
from sdlora.families.untrusted_folder import require_data_only_tokenizer
from sdlora.filesystem.reading import modified_ns
from sdlora.formatting import first_line

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
SPECIAL_TOKENS = ("model_max_length", "bos_token", "eos_token", "unk_token", "pad_token")
TOKENIZER_FOLDER = "tokenizer"
"""Folder in a models folder whose vocabulary is used before the hub's."""


def load_tokenizers(config: Path, encoders: Mapping[str, str], own: Path | None) -> dict[str, Any]:
    """Load CLIP tokenizers by component, with the special tokens and the length that ``config`` states for each.

    ``encoders`` are the text encoders by the tokenizer that they read from; ``own`` is the folder that the user named.
    Raises ModelError for a vocabulary that is missing, or has another size than an encoder's.
    """
    vocabulary = _named_folder(own) if own else _model_folder_tokenizer() or _downloaded()
    found = {}
    for name, encoder in encoders.items():
        found[name] = _tokenizer(vocabulary, config / name)
        wanted = json.loads((config / encoder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        if len(found[name]) != wanted:
            raise ModelError(
                f"{vocabulary}: is a vocabulary of {len(found[name])} pieces, but the model's {encoder} has {wanted}; "
                f"set model.tokenizer to the folder of CLIP's own ({REPOSITORY})"
            )
    return found


def local_tokenizer(base: str, own: Path | None = None) -> Any | None:
    """Return the tokenizer by which ``base`` reads texts, without opening its weights or asking the hub.

    ``own`` is the folder that the user named. None if no vocabulary lies on this machine. Raises ModelError for a base
    that is none, or a vocabulary that cannot be read. Imports no torch.
    """
    source = locate_base(base)
    folder = _named_folder(own) if own else Path(source.location) / TOKENIZER_FOLDER
    if not own and source.kind != "folder":
        cached = _cached(base, f"{TOKENIZER_FOLDER}/") if source.kind == "hub" else None
        folder = cached or _model_folder_tokenizer() or _cached(REPOSITORY) or folder
    return _plain_tokenizer(folder, modified_ns(folder)) if _has_vocabulary(folder) else None


def _cached(repository: str, prefix: str = "") -> Path | None:
    """Return the folder in the hub's cache that holds a repository's vocabulary."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, f"{prefix}{name}") for name in FILES]
    return Path(found[0]).parent if isinstance(found[0], str) and isinstance(found[1], str) else None


@lru_cache(maxsize=4)
def _plain_tokenizer(folder: Path, modified: int) -> Any:
    """Load the tokenizer in ``folder``, with CLIP's usual special tokens; they are not part of a caption's text."""
    from transformers import CLIPTokenizer

    require_data_only_tokenizer(folder)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The library's own reader raises nothing more exact.
        raise ModelError(f"{folder}: its vocabulary cannot be read: {first_line(error)}") from error


def _named_folder(folder: Path) -> Path:
    """Return the folder that holds a vocabulary: the one that was named, or ``tokenizer`` of a diffusers model."""
    for path in (folder, folder / "tokenizer"):
        if _has_vocabulary(path):
            return path
    raise ModelError(
        f"model.tokenizer: {folder} holds no vocabulary; give a folder with {' and '.join(FILES)} (or tokenizer.json), "
        "or a diffusers model that has one"
    )


def _has_vocabulary(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES) or (folder / "tokenizer.json").is_file()


def _model_folder_tokenizer() -> Path | None:
    return next((path for folder in model_folders() if _has_vocabulary(path := folder / TOKENIZER_FOLDER)), None)


def _downloaded() -> Path:
    """Return the folder in the hub's cache, downloaded if need be."""
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
    config = json.loads((stated / "tokenizer_config.json").read_text(encoding="utf-8"))
    special_tokens = {name: config[name] for name in SPECIAL_TOKENS}
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **special_tokens)
    except Exception as error:  # The library's own reader raises nothing more exact.
        raise ModelError(f"{folder}: its vocabulary cannot be read: {first_line(error)}") from error
