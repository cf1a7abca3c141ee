"""The tool that lists the class images of a run before it starts, and makes those that are missing. It needs torch."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sdlora.config import TrainConfig
from sdlora.data.class_images import ClassImages
from sdlora.data.concepts import load_concepts
from sdlora.events import Notice, OnEvent, Progress
from sdlora.families.loading import load_family
from sdlora.filesystem.locks import hold_lock
from sdlora.generation.device import choose_device
from sdlora.storage.device_lock import device_lock
from sdlora.training import precompute, prepare
from sdlora.training.distributed import Distributed
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob

WAIT_SECONDS = 5.0
"""Seconds in which a process that generates gives the device up, when it is asked to."""


def class_images(request: Mapping[str, Any], report: OnEvent) -> dict[str, Any]:
    """List the class images of the run of ``config``; with ``make``, make the missing ones first, as the run would.

    Raises what the run would fail with; BusyError while another process has the device, if images are made.
    """
    config, data_dir = TrainConfig.model_validate(request["config"]), Path(request["data_dir"])
    device = choose_device(config.train.device)
    lock = device_lock(data_dir, device)
    held = hold_lock(lock, f"the device {device}", WAIT_SECONDS) if request["make"] else nullcontext()
    with held, tempfile.TemporaryDirectory(prefix="sdlora-class-images-") as folder:
        job = TrainJob(**dict(config), output=RunPaths(Path(folder)), cache=data_dir / "cache", on_event=report)
        return _summary(_class_images(job, request["make"]))


def _class_images(job: TrainJob, make: bool) -> list[ClassImages]:
    examples = load_concepts(job.all_concepts).examples
    distributed = Distributed.setup(job.train, job.output)
    job.on_event(Progress(phase="loading the base model"))
    family = prepare.load_base(job, distributed) if make else load_family(job.model, distributed.dtype)
    resolution = job.data.resolution or family.native_size
    if make:
        precompute.prepare_class_images(job, distributed, family, resolution, examples)
    selected, _ = precompute.plan_class_images(job, distributed.precision, family, resolution, examples)
    for message in () if make else (notice for found in selected for notice in found.notices):
        job.on_event(Notice(message=message))
    return selected


def _summary(selected: Sequence[ClassImages]) -> dict[str, Any]:
    """Return the number of images and of those that are missing, the folders, and each image with its prompt."""
    missing = {image.path for found in selected for image in found.missing()}
    own = [(example.path, example.caption) for found in selected for example in found.own]
    generated = dict.fromkeys((image.path, image.prompt) for found in selected for image in found.generated)
    there = [*own, *((path, prompt) for path, prompt in generated if path not in missing)]
    return {
        "count": len(own) + len(generated),
        "missing": len(missing),
        "folders": list(dict.fromkeys(str(path.parent) for path, _ in there)),
        "images": [[str(path), prompt] for path, prompt in there],
    }
