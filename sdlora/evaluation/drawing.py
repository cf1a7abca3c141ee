"""Images of an evaluation: generated once, kept in a folder under names that tell everything that decides them.

A job that was killed goes on where it ended, and one with other prompts or scales reuses what they have in common. An
adapter, base or setting that changed gives another name, so that no image is taken for another one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdlora.data.images import open_image
from sdlora.errors import ConfigError, DatasetError
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
TOGETHER = 4
"""Images that a processor generates at once: a third sooner than one by one."""


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
        for adapter in wanted:
            with _wearing(studio, adapter, 1.0):  # One that cannot be loaded is told before anything is generated.
                pass
        missing = {key for keys in wanted.values() for key in keys if not self._is_usable(key)}
        total, done = sum(map(len, wanted.values())), 0
        progress = report_progress(report, PHASE)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        advance(sum(key not in missing for keys in wanted.values() for key in keys))
        for adapter, keys in wanted.items():
            for scale, group in groupby(keys, lambda key: key.scale):
                if todo := _incomplete(list(group), missing, studio, batch):
                    with _wearing(studio, adapter, scale):
                        self._generate(studio, todo, missing, batch, advance)

    def _generate(
        self,
        studio: Studio,
        keys: Sequence[ImageKey],
        missing: Set[ImageKey],
        batch: int | None,
        advance: Callable[[int], None],
    ) -> None:
        """Generate the images ``keys``, of one adapter and scale that the studio has, and keep the missing ones."""
        specs = [
            studio.image_spec(
                GenerationSettings.from_section(self.settings, prompt=key.prompt, seed=key.seed),
                {ADAPTER: key.scale} if key.adapter else {},
            )
            for key in keys
        ]

        def keep(position: int, image: Image.Image) -> None:
            if keys[position] in missing:
                write_atomic(self.path(keys[position]), partial(write_image, image))
                advance(1)

        studio.generate_specs(specs, keep, batch=batch or (TOGETHER if _on_processor(studio) else None))

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


def _incomplete(keys: Sequence[ImageKey], missing: Set[ImageKey], studio: Studio, batch: int | None) -> list[ImageKey]:
    """Return the ``missing`` of ``keys``; on a processor with those that were made with them, for the same rounding."""
    size = (batch or TOGETHER) if _on_processor(studio) else 1
    groups = (keys[first : first + size] for first in range(0, len(keys), size))
    return [key for group in groups if not missing.isdisjoint(group) for key in group]


@contextmanager
def _wearing(studio: Studio, adapter: EvaluatedAdapter | None, scale: float) -> Iterator[None]:
    """Have ``adapter`` at ``scale`` in the studio's base; on a processor folded into its weights, at no cost per step.

    A graphics card would have to hold the weights twice.
    """
    if adapter is None:
        yield
        return
    studio.add_adapter(ADAPTER, adapter.path, scale)
    try:
        if _on_processor(studio):
            with suppress(ConfigError):  # A quantised base keeps its weights.
                studio.fuse()
        yield
    finally:
        studio.unfuse()
        studio.remove_adapter(ADAPTER)


def _on_processor(studio: Studio) -> bool:
    return studio.runtime.device.type == "cpu"


def image_keys(
    adapter: EvaluatedAdapter | None, scales: Iterable[float], prompts: Sequence[str], seeds: Sequence[int]
) -> list[ImageKey]:
    """Return the keys of all ``prompts`` and ``seeds`` at each of ``scales``: prompt by prompt, its seeds together.

    Raises FileError for an adapter that is gone, or cannot be read.
    """
    digest = _digest(adapter)
    return [ImageKey(digest, scale, prompt, seed) for scale in scales for prompt in prompts for seed in seeds]


def _digest(adapter: EvaluatedAdapter | None) -> str:
    if adapter is None:
        return ""
    with file_errors(adapter.path, "read"):
        return sha256(adapter.path)
