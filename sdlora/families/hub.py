"""Files of the hub, downloaded or cached, and explanations of its errors."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdlora.errors import ModelError
from sdlora.families import family_components
from sdlora.families.settings import Model
from sdlora.formatting import first_line

PREFIX = "models--"
"""Beginning of the name of a model's folder in the hub's cache; a further ``--`` stands for the id's slash."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def wanted_files(model: Model) -> tuple[list[str], list[str]]:
    """Return patterns of the files that loading ``model`` from the hub needs, and of those to leave out of them.

    Configs, tokenizers and safetensors of the one variant; never a pickle.
    """
    variants = [f"*.{model.variant}.safetensors", f"*.{model.variant}-*.safetensors"] if model.variant else []
    others = [] if model.variant else ["*/*.fp16.*", "*/*.fp16-*", "*/*.non_ema.*"]
    weighted = [name for name, component in family_components().items() if component.weights]
    weights = [f"{part}/{ending}" for part in weighted for ending in variants or ["*.safetensors"]]
    return ["model_index.json", "*/*.json", "*/*.txt", *weights], others


def fetch_files(model: Model, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """Return the folder with the files of the hub's repository ``model.base`` that match. Raises ModelError."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.base, revision=model.revision, allow_patterns=[*wanted], ignore_patterns=[*unwanted]
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.base}: {explain_hub_error(error, model.revision)}") from error
    return Path(folder)


def cache_folder() -> Path:
    """Return the folder of the hub's cache: ``hub`` in ``$HF_HOME``, or ``$HF_HUB_CACHE``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def cached_models() -> Iterator[tuple[str, Path]]:
    """Yield the id and the folder of each diffusers model in the hub's cache, as its main branch was when fetched."""
    for own in sorted(cache_folder().glob(f"{PREFIX}*--*")):
        name = own.name.removeprefix(PREFIX).replace("--", "/", 1)
        folder = cached_folder(name)
        if folder is not None and (folder / "model_index.json").is_file():
            yield name, folder


def cached_folder(name: str) -> Path | None:
    """Return the folder of the hub's repository ``name`` in the cache, as its main branch was when fetched."""
    own = cache_folder() / f"{PREFIX}{name.replace('/', '--')}"
    try:
        return own / "snapshots" / (own / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def missing_weights(folder: Path, model: Model, parts: Sequence[str]) -> list[str]:
    """Return those of the ``parts`` of a model in the hub's cache whose weights, of its variant, are not there."""
    from huggingface_hub.utils import filter_repo_objects

    wanted, unwanted = wanted_files(model)
    there = [path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")]
    found = {name.split("/")[0] for name in filter_repo_objects(there, allow_patterns=wanted, ignore_patterns=unwanted)}
    return [part for part in parts if part not in found]


def explain_hub_error(error: BaseException, revision: str | None = None) -> str:
    """Return what went wrong and what to do, from the first cause of ``error`` that is known."""
    from huggingface_hub import constants

    if reason := known_cause(error, revision):
        return reason
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return f"{offline} and nothing is cached; go online once, or give a folder"


def known_cause(error: BaseException, revision: str | None = None) -> str:
    """Return the reason that the hub or the disk gives, and the remedy; empty if neither gives one."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    messages = {  # Gated before not found: the one is a kind of the other.
        GatedRepoError: "is gated; accept its terms on the hub, then log in with `hf auth login`",
        RevisionNotFoundError: f"the hub has no revision {revision} of it; check model.revision",
        RepositoryNotFoundError: "the hub has no such model (or it is private); check the spelling",
    }
    link: BaseException | None = error
    while link is not None:
        for kind, message in messages.items():
            if isinstance(link, kind):
                return message
        if isinstance(link, OSError) and link.errno in FULL_DISK:
            return f"the disk of {cache_folder()} is full; free some space, or set HF_HOME to a folder with room"
        link = link.__cause__ or link.__context__
    if isinstance(error, OSError) and error.filename:
        return f"the hub's cache cannot be used: {first_line(error)}; set HF_HOME to a folder with room"
    return ""
