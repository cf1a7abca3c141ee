"""Images of an evaluation: generated once, kept in a folder under names that tell everything that decides them.

A job that was killed goes on where it ended, and one with other prompts or scales reuses what they have in common. An
adapter, base or setting that changed gives another name, so that no image is taken for another one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdlora.data.images import open_image
from sdlora.errors import DatasetError
from sdlora.events import OnEvent, report_progress
from sdlora.filesystem.reading import find_matching, sha256
from sdlora.filesystem.writing import TEMPORARY, file_errors, write_atomic
from sdlora.generation.generation_spec import SamplingParams
from sdlora.generation.images import write_image
from sdlora.generation.settings import GenerationSettings, ImageSettings
from sdlora.generation.studio import Studio

ADAPTER = "evaluated"
"""Name of the adapter in the studio."""
PHASE = "generating images"


class EvaluatedAdapter(NamedTuple):
    """An adapter file, its name in the report, and the number of steps it was trained for."""

    name: str
    step: int
    path: Path


class ImageKey(NamedTuple):
    """One image: the SHA-256 of its adapter's file ("" for the base), its scale, prompt and seed."""

    adapter: str
    scale: float
    prompt: str
    seed: int


Wanted = Mapping[EvaluatedAdapter | None, Sequence[ImageKey]]
"""Images of each adapter, scale by scale, prompt by prompt; None is the base."""


class ImageFolder:
    """The images that the base of ``studio`` makes with one set of sampling ``settings``, in ``folder``."""

    def __init__(self, folder: Path, studio: Studio, settings: ImageSettings):
        self.folder, self.settings = folder, settings
        params = SamplingParams.resolve(studio.family, settings).model_dump(mode="json")
        precision = str(studio.family.dtype)
        self._shared = {
            "base": studio.family.fingerprint, "overrides": studio.base_overrides, "dtype": precision, **params,
        }  # fmt: skip
        self.size = params["width"], params["height"]

    def path(self, key: ImageKey) -> Path:
        """Return the file of an image, which need not exist."""
        decided_by = json.dumps({**self._shared, **key._asdict()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(decided_by.encode()).hexdigest()[:32]}.png"

    def open(self, key: ImageKey) -> Image.Image:
        """Return an image that is there. Raises DatasetError if it cannot be read."""
        return open_image(self.path(key)).rgb

    def generate(self, studio: Studio, wanted: Wanted, batch: int | None, report: OnEvent) -> None:
        """Generate what is missing of the ``wanted`` images, up to ``batch`` at once; keep each once it is finished.

        ``studio`` has the folder's base, and no adapter. Raises what loading an adapter and ``Studio.generate_specs``
        raise, FileError.
        """
        self._sweep()
        missing = {adapter: [key for key in keys if not self._is_usable(key)] for adapter, keys in wanted.items()}
        total = sum(map(len, wanted.values()))
        done = total - sum(map(len, missing.values()))
        progress = report_progress(report, PHASE)
        progress(done, total)

        def kept() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for adapter, keys in missing.items():
            if keys:
                self._generate(studio, adapter, keys, batch, kept)

    def _generate(
        self,
        studio: Studio,
        adapter: EvaluatedAdapter | None,
        keys: Sequence[ImageKey],
        batch: int | None,
        kept: Callable[[], None],
    ) -> None:
        """Generate the images ``keys`` with ``adapter``, at their scales."""
        if adapter:
            studio.add_adapter(ADAPTER, adapter.path, 0.0)
        specs = [
            studio.image_spec(
                GenerationSettings.from_section(self.settings, prompt=key.prompt, seed=key.seed),
                {ADAPTER: key.scale} if adapter else {},
            )
            for key in keys
        ]

        def keep(position: int, image: Image.Image) -> None:
            write_atomic(self.path(keys[position]), partial(write_image, image))
            kept()

        try:
            studio.generate_specs(specs, keep, batch=batch)
        finally:
            if adapter:
                studio.remove_adapter(ADAPTER)

    def _is_usable(self, key: ImageKey) -> bool:
        try:
            return self.path(key).is_file() and self.open(key).size == self.size
        except DatasetError:
            return False

    def _sweep(self) -> None:
        """Make the folder, without the unfinished files of a job that was killed."""
        with file_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in find_matching(self.folder, f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)


def image_keys(
    adapter: EvaluatedAdapter | None, scales: Iterable[float], prompts: Sequence[str], seeds: Sequence[int]
) -> list[ImageKey]:
    """Return the keys of all ``prompts`` and ``seeds`` at each of ``scales``: prompt by prompt, its seeds together."""
    digest = sha256(adapter.path) if adapter else ""
    return [ImageKey(digest, scale, prompt, seed) for scale in scales for prompt in prompts for seed in seeds]
