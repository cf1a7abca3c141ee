"""Measurements of what a run takes, each in a file named by the digest of all that decides it.

``sdlora.jobs.profile_worker`` writes them; front ends read them without torch.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sdlora.config import TrainConfig, explicit_settings
from sdlora.data.concepts import MOST_CONCEPTS, join_examples, naming_concept, preserves_classes
from sdlora.data.dataset import Example, load_dataset
from sdlora.data.held_out import split_share
from sdlora.data.masks import is_mask_folder
from sdlora.data.settings import Concept, Data
from sdlora.errors import SdloraError
from sdlora.families.base_models import locate_base
from sdlora.filesystem.reading import read_json
from sdlora.jobs.memory_savings import AppliedSaving, with_settings
from sdlora.training.profiling import RunProfile, count_class_images

CODE = 4
"""Version of the measured code: raise it when a change makes steps take other times or bytes."""
MOST_PIXELS = 1 << 16
"""Side in pixels beyond any that was measured."""
FREE_SECONDS = 600.0
"""Seconds for which a measurement of a card's free memory counts; then what was chosen by it is measured again."""


@dataclass(frozen=True, kw_only=True)
class Measurement(RunProfile):
    """A run as it was measured, and what was counted (docs/memory.md). Its fields are the keys of its file."""

    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings that ``train.memory`` changed; the run was measured with them."""
    told: Sequence[str] = ()
    """Notices about them."""
    counted: int = 0
    """Bytes of a device that the run needs, counted."""
    rungs: Sequence[Mapping[str, Any]] | None = None
    """Further memory savings, each on top of those before: ``changes``, the bytes that the run then ``needs``,
    ``costs``. None if they were not counted."""

    def as_chosen(self, config: TrainConfig) -> TrainConfig:
        """Return ``config`` as it was measured."""
        return with_settings(config, self.chosen)


_MEASUREMENTS, _SAVINGS = TypeAdapter(Measurement), TypeAdapter(tuple[AppliedSaving, ...])


def cached_measurement(config: TrainConfig, data_dir: Path) -> Measurement | None:
    """Return the measurement of such a run on this machine, if there is one."""
    try:
        result = measurement_file(config, data_dir)
        found = _MEASUREMENTS.validate_python(read_json(result))
        if not (0 <= found.resolution <= MOST_PIXELS and 1 <= found.latent_factor <= MOST_PIXELS):
            return None  # All sizes of such pictures could not be counted.
        if found.rungs is not None:
            found = replace(found, rungs=[saving._asdict() for saving in _SAVINGS.validate_python(found.rungs)])
        old = abs(time.time() - result.stat().st_mtime) > FREE_SECONDS
    except (OSError, SdloraError, ValueError):
        return None
    return None if old and config.train.memory == "auto" and found.device != "cpu" else found


@cache
def torch_version() -> str:
    """Return the version of the installed torch, which is not imported."""
    return version("torch")


def measurement_file(config: TrainConfig, data_dir: Path) -> Path:
    """Return the file for the measurement of ``config``, named by the digest of all that decides it."""
    sizes = sorted({tuple(example.size) for example in counted_examples(config)})
    sample = config.sample.model_dump(include={"cfg", "sampler", "width", "height"})
    generates = bool(config.sample.every and config.sample.prompts) or count_class_images(config.all_concepts) > 0
    what = {**step_settings(config), "sizes": sizes, "sample": sample if generates else None, "torch": torch_version()}
    what |= {"base": _weights(config.model.base), "machine": platform.node(), "memory": generates}
    return data_dir / "cache" / "estimates" / f"{_digest(what)}.json"


def step_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide the time and memory of a micro-batch."""
    names = {"batch_size", "precision", "gradient_checkpointing", "device", "offload", "memory"}
    hand = sorted(explicit_settings(config)) if config.train.memory is not None else []
    concepts = config.all_concepts
    text = config.adapter.text_encoder and config.train.text_encoder_learning_rate != 0
    return {
        "model": config.model.model_dump(),
        "code": CODE,
        "data": {**config.data.model_dump(include={"resolution", "buckets"}), **_caption_changes(concepts)},
        "prior": config.prior.target if preserves_classes(concepts) else None,
        "adapter": {**config.adapter.model_dump(exclude={"init", "text_encoder", "alpha"}), "text": text},
        "train": config.train.model_dump(include=names),
        "optimizer": config.optimizer.name,
        "given": hand,
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _weights(base: str) -> list[tuple[str, int, int]]:
    """Return a base's files of weights with sizes and times, which change as it does; none for a hub id."""
    source = locate_base(base)
    location = Path(source.location)
    files = {"folder": sorted(location.rglob("*.safetensors")), "file": [location]}.get(source.kind, [])
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def counted_examples(config: TrainConfig) -> tuple[Example, ...]:
    """Return the training images with their sizes and repeats; a folder is read again only if it has changed.

    Captions and masks are not those of the run. Raises DatasetError.
    """
    concepts, found = config.all_concepts, []
    for index, concept in enumerate(concepts):
        entries = sorted((entry.path, entry.stat().st_mtime_ns) for entry in _files(concept.folder))
        with naming_concept(concepts, index):
            data = Data(folder=concept.folder, crop=concept.crop, crop_margin=concept.crop_margin)
            examples = _read_folder(data, _digest({"files": entries}))
            found.append(split_share(examples, concept.validation_share).trained)
    return join_examples(concepts, found)


def _files(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the files of a data folder, of the folders directly in it, and of those with their masks; none if there is
    no folder.
    """
    with suppress(OSError), os.scandir(folder) as found:
        entries = list(found)
        inner = [file for entry in entries if entry.is_dir() for file in os.scandir(entry.path)]
        masks = [file for entry in inner if is_mask_folder(Path(entry.path)) for file in os.scandir(entry.path)]
        return [entry for entry in (*entries, *inner, *masks) if entry.is_file()]
    return []


@lru_cache(maxsize=MOST_CONCEPTS)
def _read_folder(data: Data, stamp: str) -> tuple[Example, ...]:
    return load_dataset(data).examples


def _caption_changes(concepts: Sequence[Concept]) -> dict[str, Any]:
    """Return how captions vary from step to step: of several concepts the most that one does."""
    names = ("shuffle_captions", "tag_dropout", "caption_dropout", "preserve_empty", "preserve_untriggered")
    return {name: max(getattr(concept, name) for concept in concepts) for name in names}
