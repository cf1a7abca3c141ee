"""The trained adapter as a file that every tool reads, with the truth about how it was made."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdlora.data.concepts import trigger_words
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept
from sdlora.data.tags import caption_tags
from sdlora.diffusion import ZERO_SNR
from sdlora.filesystem.writing import write_atomic
from sdlora.formats import write_adapter
from sdlora.formats.metadata import Provenance, a1111_card, provenance_metadata
from sdlora.optim import averaged_parameters
from sdlora.training.prepare import TrainState, text_rate
from sdlora.training.train_job import TrainJob


def save_adapter(path: Path, train_state: TrainState, job: TrainJob, step: int) -> None:
    """Write the adapter as it is after ``step`` steps: kohya keys, full metadata."""
    metadata = provenance_metadata(provenance(train_state, job, step))
    with averaged_parameters(train_state.trained.optimizer):
        state = train_state.trained.trainable.state(metadata)
    if state.modules:  # Taught words alone are no adapter.
        write_adapter(state, path, format="kohya", dtype=job.checkpoint.precision)


def save_a1111_card(path: Path, train_state: TrainState, job: TrainJob, step: int) -> None:
    """The side file that A1111 shows beside the adapter at ``path``, which has learnt for ``step`` steps."""
    write_atomic(path.with_suffix(".json"), a1111_card(provenance(train_state, job, step)))


def provenance(train_state: TrainState, job: TrainJob, step: int) -> Provenance:
    """Return the provenance of this adapter."""
    examples = train_state.batches.examples
    return Provenance(
        name=job.output.name,
        family=train_state.family.name,
        prediction_type=train_state.family.prediction_type,
        zero_terminal_snr=bool(train_state.family.scheduler_config.get(ZERO_SNR)),
        base=Path(job.model.base).name,
        triggers=trigger_words(job.all_concepts),
        learning_rate=job.train.learning_rate,
        text_encoder_learning_rate=text_rate(job) if train_state.trained.trains_text else None,
        optimizer=job.optimizer.name,
        scheduler=job.schedule.name,
        steps=step,
        epochs=math.ceil(step * job.train.gradient_accumulation / train_state.batches.per_epoch),
        batch_size=job.train.batch_size * train_state.distributed.count,
        gradient_accumulation=job.train.gradient_accumulation,
        images=sum(example.repeats for example in examples),
        class_images=len(train_state.batches.class_examples),
        resolution=(train_state.resolution, train_state.resolution),
        seed=job.train.seed,
        clip_skip=job.train.clip_skip if job.train.clip_skip != 1 else None,
        mixed_precision=train_state.distributed.precision,
        noise_offset=job.loss.noise_offset,
        min_snr_gamma=job.loss.min_snr_gamma,
        prior_weight=max(concept.prior_weight or 0.0 for concept in job.all_concepts),
        started=train_state.started,
        finished=time.time(),
        folders=_folders(examples, job.all_concepts),
        buckets=_buckets(examples, train_state.sizes),
        tag_frequency=_tags(examples, job.all_concepts),
    )


def _folder_name(example: Example, concepts: Sequence[Concept]) -> str:
    """Return the name of an example's folder; of several concepts, whose folders may share a name, kohya's for one."""
    if len(concepts) == 1:
        return example.path.parent.name
    own = concepts[example.concepts[0]]
    words = f"{own.trigger} {own.class_name}".strip() or own.folder.name
    return f"{example.repeats}_{words}"


def _folders(examples: Sequence[Example], concepts: Sequence[Concept]) -> Mapping[str, tuple[int, int]]:
    counts = Counter((_folder_name(example, concepts), example.repeats) for example in examples)
    return {name: (repeats, count) for (name, repeats), count in counts.items()}


def _buckets(examples: Sequence[Example], sizes: Sequence[ImageSize]) -> Mapping[tuple[int, int], int]:
    counts: Counter[tuple[int, int]] = Counter()
    for example, size in zip(examples, sizes, strict=True):
        counts[size.width, size.height] += example.repeats
    return counts


def _tags(examples: Sequence[Example], concepts: Sequence[Concept]) -> Mapping[str, Mapping[str, int]]:
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        own = caption_tags(example.caption, concepts[example.concepts[0]])
        tags[_folder_name(example, concepts)].update(own)
    return tags
