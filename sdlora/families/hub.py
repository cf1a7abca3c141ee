"""Files of the hub, downloaded or cached, and explanations of its errors."""

from collections.abc import Sequence
from pathlib import Path

from sdlora.errors import ModelError
from sdlora.families.settings import Model
from sdlora.formatting import first_line


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


def explain_hub_error(error: BaseException, revision: str | None = None) -> str:
    """Return what went wrong and what to do, from the first cause of ``error`` that the hub's library names."""
    from huggingface_hub import constants
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
        link = link.__cause__ or link.__context__
    if isinstance(error, OSError) and error.filename:
        return f"the hub's cache cannot be used: {first_line(error)}; set HF_HOME to a folder with room"
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return f"{offline} and nothing is cached; go online once, or give a folder"
