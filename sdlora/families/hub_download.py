"""Download of a model into the hub's cache, with progress in bytes, which goes on where an earlier one ended.

The hub's library (2.4) begins a file that was interrupted anew. The UNet of an SDXL is one file of 10 GB, so large
files are fetched here, each into a part file named by its hash; the library then adds the small ones and its links.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.errors import ModelError, SdloraError
from sdlora.events import OnEvent, OnProgress, report_progress
from sdlora.families import FAMILIES
from sdlora.families.detect import detect_folder, require_served
from sdlora.families.hub import (
    PREFIX,
    cache_folder,
    explain_hub_error,
    fetch_files,
    known_cause,
    missing_weights,
    wanted_files,
)
from sdlora.families.settings import Model
from sdlora.filesystem.locks import FOREVER, hold_lock
from sdlora.filesystem.writing import require_free_space
from sdlora.formatting import first_line

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

LARGE = 16 * 2**20
"""Bytes from which on a file is fetched in parts that outlive an interruption."""
SHA256_DIGITS = 64
"""Length of the tag of a large file on the hub: the SHA-256 of its content, in hexadecimal digits."""
PART = ".sdlora-part"
"""Ending of a large file that is not complete."""
CHUNK = 4 * 2**20


def download_model(model: Model, on_event: OnEvent) -> Path:
    """Download what loading ``model`` needs, unless it is cached, and return its folder.

    Raises ModelError with the hub's reason, or for a repository that holds no model of a served family; FileError for
    a disk without room; BusyError while another process downloads it.
    """
    patterns = wanted_files(model)
    with _downloading(model):
        files = _listed(model, *patterns)
        if not any(file.filename == "model_index.json" for file in files):
            raise ModelError(f"{model.base}: has no model_index.json, so it is no diffusers model; choose another")
        folder = _fetch(model, files, patterns, on_event)
    _require_complete(folder, model)
    return folder


def download_files(model: Model, wanted: Sequence[str], on_event: OnEvent) -> Path:
    """Download the files of the hub's repository ``model.base`` that match, unless they are cached; return its folder.

    Waits while another process downloads it. Raises ModelError with the hub's reason, FileError for a disk without
    room.
    """
    if not _lacks(model, wanted):  # Without a lock: the cache may be read-only.
        return fetch_files(model, wanted)
    with _downloading(model, FOREVER):
        return _fetch(model, _listed(model, wanted), (wanted, ()), on_event)


@contextmanager
def _downloading(model: Model, wait: float = 0) -> Iterator[None]:
    """Hold the lock of the model's download, for which others ``wait`` so many seconds, and explain errors within."""
    cache = _cache(model)
    lock = hold_lock(cache.with_name(f".{cache.name}.lock"), f"the download of {model.base}", wait)
    try:
        yield
    except SdloraError:
        raise
    except Exception as error:  # The hub's library and those below it raise errors of many kinds.
        raise ModelError(f"{model.base}: {_explain(error, model)}") from error
    finally:
        lock.release()


def _fetch(
    model: Model, files: "Sequence[DryRunFileInfo]", patterns: tuple[Sequence[str], Sequence[str]], on_event: OnEvent
) -> Path:
    """Download those of the listed ``files`` that the cache lacks; ``patterns`` wanted and left out, they match."""
    cache, missing = _cache(model), [file for file in files if file.will_download]
    total = sum(file.file_size or 0 for file in missing)
    large = [file for file in missing if (file.file_size or 0) >= LARGE]
    require_free_space(cache, total - sum(part.stat().st_size for part in cache.glob(f"blobs/*{PART}")))
    progress, done = report_progress(on_event, "downloading", unit="bytes"), 0
    for file in sorted(large, key=lambda file: file.file_size or 0):
        _fetch_large(model, file, cache, _shifted(progress, done, total))
        done += file.file_size or 0
    folder = fetch_files(model, *patterns)
    progress(total, total)
    return folder


def _cache(model: Model) -> Path:
    """Return the folder of the model in the hub's cache."""
    return cache_folder() / f"{PREFIX}{model.base.replace('/', '--')}"


def _explain(error: Exception, model: Model) -> str:
    """Return why a download failed; one that had begun can go on."""
    if any(_cache(model).glob(f"blobs/*{PART}")) and not known_cause(error, model.revision):
        return f"the download broke off ({first_line(error)}); what has arrived is kept, so download it again to go on"
    return explain_hub_error(error, model.revision)


def _lacks(model: Model, wanted: Sequence[str]) -> bool:
    """Return whether the hub has matching files that the cache lacks; False where the hub tells nothing."""
    try:
        return any(file.will_download for file in _listed(model, wanted))
    except ModelError:
        return False


def _listed(model: Model, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> "Sequence[DryRunFileInfo]":
    """Return the wanted files, each with its size, and whether the cache lacks it."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            model.base, revision=model.revision, allow_patterns=[*wanted], ignore_patterns=[*unwanted], dry_run=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.base}: {explain_hub_error(error, model.revision)}") from error


def _shifted(progress: OnProgress, before: int, total: int) -> Callable[[int], None]:
    """Return a callback with the bytes of one file that are there, ``before`` which others were complete."""
    return lambda done: progress(min(before + done, total), total)


def _fetch_large(model: Model, file: "DryRunFileInfo", cache: Path, there: Callable[[int], None]) -> None:
    """Put a file among the cache's blobs, where the library looks before it downloads."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(model.base, file.filename, revision=file.commit_hash)
    found = get_hf_file_metadata(url)
    if found.etag is None or len(found.etag) != SHA256_DIGITS:  # Its content could not be checked; the library may.
        return
    blob = cache / "blobs" / found.etag
    part = blob.with_name(f"{found.etag}{PART}")
    part.parent.mkdir(parents=True, exist_ok=True)
    if not blob.exists():
        with part.open("ab") as stream:  # By the hub's own address: those that it leads to expire.
            http_get(
                url, stream, resume_size=stream.tell(), expected_size=found.size, headers=build_hf_headers(),
                tqdm_class=_byte_counter(there),
            )  # fmt: skip
        _require_hash(part, found.etag, f"{model.base}: {file.filename}")
        os.replace(part, blob)
    there(file.file_size or 0)


def _byte_counter(there: Callable[[int], None]) -> Any:
    """Return a class like tqdm, as far as downloads use it, that calls ``there`` with the bytes so far."""

    class ByteCounter:
        def __init__(self, *, initial: int = 0, **options: Any):
            self.n = initial

        def __enter__(self) -> "ByteCounter":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, more: float = 1) -> None:
            self.n += int(more)
            there(self.n)

    return ByteCounter


def _require_hash(part: Path, expected: str, name: str) -> None:
    """Raise ModelError, and delete ``part``, unless its content has the ``expected`` SHA-256."""
    digest = hashlib.sha256()
    with part.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        part.unlink()
        raise ModelError(f"{name} arrived damaged (another SHA-256 than the hub's); download it again")


def _require_complete(folder: Path, model: Model) -> None:
    """Raise ModelError for a repository of another family, or without safetensors weights of a part."""
    components = FAMILIES[require_served(detect_folder(folder), model.base)].components
    weighted = [name for name, component in components.items() if component.weights]
    if missing := missing_weights(folder, model, weighted):
        kind = f"{model.variant} " if model.variant else ""
        raise ModelError(f"{model.base}: has no {kind}.safetensors weights of {', '.join(missing)}; choose another")
