"""Evaluation of an adapter's checkpoints: generate, measure, propose."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from sdlora.data.captions import without_trigger
from sdlora.data.cropping import crop_and_resize
from sdlora.data.images import ImageSize, open_image, to_pixels
from sdlora.data.settings import Kind
from sdlora.evaluation import measures
from sdlora.evaluation.drawing import EvaluatedAdapter, ImageFolder, ImageKey, Wanted, image_keys
from sdlora.evaluation.encoder_sources import EncoderNames, fetch_encoders
from sdlora.evaluation.encoders import Encoders, load_encoders
from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.proposal import Proposal, TrainedAs, as_trained, propose
from sdlora.evaluation.report import IMAGES, SHEET, Evaluation, write_evaluation
from sdlora.evaluation.settings import COPY_SEEDS, EvaluationSettings
from sdlora.evaluation.sheet import SheetRow, evaluation_sheet
from sdlora.events import OnEvent, Progress, report_progress
from sdlora.families.base import Family
from sdlora.families.settings import Model
from sdlora.filesystem.writing import write_atomic
from sdlora.generation.device import choose_device
from sdlora.generation.images import write_image
from sdlora.generation.sampling import eval_mode, to_image
from sdlora.generation.settings import ImageSettings
from sdlora.generation.studio import Studio

MOST_TRAINING_IMAGES = 200
"""Training images that generated ones are compared with; of more, as many are taken evenly."""
WITHOUT_IMAGES = (
    "Nothing can be proposed without training pictures: look, spill, nearest picture and copies are compared with them."
)


@dataclass(frozen=True)
class TrainingImage:
    """A training image, and the caption by which it is asked for."""

    path: Path
    caption: str


@dataclass(frozen=True)
class EvaluationTask:
    """All that an evaluation needs to know."""

    name: str
    model: Model
    kind: Kind
    adapters: Sequence[EvaluatedAdapter]
    training: Sequence[TrainingImage]
    """Training images; without any, only what needs none is measured, and nothing is proposed."""
    prompts: EvaluationPrompts
    trigger: str
    trained_as: TrainedAs
    """Settings of the training that advice depends on."""
    sampling: ImageSettings
    encoders: EncoderNames
    settings: EvaluationSettings
    folder: Path
    """Folder that keeps the images and the result."""


def evaluate(task: EvaluationTask, report: OnEvent) -> Evaluation:
    """Generate what is missing, measure it, and write ``evaluation.json`` and the contact sheet into the task's folder.

    Raises ModelError for a base or an encoder that cannot be loaded, DatasetError for training images that cannot be
    read, and what ``ImageFolder.generate`` raises.
    """
    wanted, device = _wanted(task), choose_device(task.settings.device)
    sources = fetch_encoders(task.encoders, report)
    images, training = _generate(task, wanted, report)
    report(Progress(phase="loading the models that compare images"))
    encoders = load_encoders(sources, task.kind, device)
    candidates = _measure(task, images, wanted, encoders, training, report)
    sampled = {**task.sampling.model_dump(mode="json"), "seed": task.settings.seed}
    unknown = Proposal(reasons=(WITHOUT_IMAGES,))
    proposal = propose(candidates, task.kind, task.trained_as) if task.training else unknown
    evaluation = Evaluation(
        task.name, task.kind, task.model.base, *task.encoders, task.prompts, task.settings.seeds, candidates, proposal,
        sampled,
    )  # fmt: skip
    _write_sheet(evaluation, task, images, wanted)
    write_evaluation(evaluation, task.folder)
    return evaluation


def _wanted(task: EvaluationTask) -> Wanted:
    """Return the images of all candidates; then, at one scale, those that training captions ask for."""
    settings, prompts = task.settings, task.prompts
    seeds, copy_seeds = (range(settings.seed, settings.seed + count) for count in (settings.seeds, COPY_SEEDS))
    found: dict[EvaluatedAdapter | None, Sequence[ImageKey]] = {}
    for each in (None, *task.adapters):
        scales = settings.scales if each else (0.0,)
        asked = image_keys(each, scales, prompts.all, seeds)
        found[each] = [*asked, *image_keys(each, [as_trained(scales)], prompts.captions, copy_seeds)]
    return found


def _generate(task: EvaluationTask, wanted: Wanted, report: OnEvent) -> tuple[ImageFolder, list[Image.Image]]:
    """Generate the missing images; also return the training images as the base would show them. The base is let go."""
    report(Progress(phase="loading the base model"))
    studio = Studio(task.model, task.settings.device)
    images = ImageFolder(task.folder / IMAGES, studio, task.sampling)
    images.generate(studio, wanted, task.settings.batch_size, report)
    return images, _as_the_base_shows(studio.family, task.training, images.size, report)


def _as_the_base_shows(
    family: Family, training: Sequence[TrainingImage], size: tuple[int, int], report: OnEvent
) -> list[Image.Image]:
    """Return training images at the ``size`` of generated ones and through the base's VAE, as those come out of it.

    Else its softness would part the two, whatever the adapter has learnt.
    """
    progress, shown = report_progress(report, "reading training images"), []
    with eval_mode(family):
        for number, example in enumerate(training, 1):
            pixels = to_pixels(crop_and_resize(open_image(example.path).rgb, ImageSize(*size)))[None]
            latents, _ = family.encode_images(pixels.to(family.device))
            shown.append(to_image(family.decode(latents)))
            progress(number, len(training))
    return shown


class _Seen(NamedTuple):
    """Features of images with the trigger, without it, and of other things, each (N, D)."""

    asked: torch.Tensor
    of_class: torch.Tensor
    unrelated: torch.Tensor
    clip: torch.Tensor
    """CLIP's features of the images with the trigger."""


@dataclass(frozen=True)
class _Eyes:
    """The models, and the number of images of each kind."""

    encoders: Encoders
    asked: int
    of_class: int

    def see(self, images: Sequence[Image.Image]) -> _Seen:
        """Return what is seen in the images of one candidate, prompt by prompt."""
        features = self.encoders.features(images)
        first, second = self.asked, self.asked + self.of_class
        clip = self.encoders.clip.images(images[:first])
        return _Seen(features[:first], features[first:second], features[second:], clip)


def _measure(
    task: EvaluationTask,
    images: ImageFolder,
    wanted: Wanted,
    encoders: Encoders,
    training: Sequence[Image.Image],
    report: OnEvent,
) -> tuple[Candidate, ...]:
    """Return the figures of each adapter at each scale."""
    prompts, seeds = task.prompts, task.settings.seeds
    count = len(prompts.all) * seeds
    eyes = _Eyes(encoders, len(prompts.triggered) * seeds, len(prompts.of_class) * seeds)
    base = [images.open(key) for key in wanted[None]]
    distinct = (*prompts.triggered, *prompts.unrelated)  # Without the trigger, class prompts are those with it.
    texts = encoders.clip.texts([without_trigger(text, task.trigger) for text in distinct])
    names = [example.path.name for example in task.training]
    ruler = _Ruler(
        eyes.see(base[:count]), encoders.features(training) if training else None, texts, names, seeds,
        measures.details(training) if training else None, measures.details(base[count:]) if prompts.captions else None,
        _described(task, encoders, training),
        _captioned(task),
    )  # fmt: skip
    progress = report_progress(report, "measuring")
    total, found = len(task.adapters) * len(task.settings.scales), []
    for adapter in task.adapters:
        keys = wanted[adapter]
        asked_by_captions = [images.open(key) for key in keys[len(task.settings.scales) * count :]]
        for number, scale in enumerate(task.settings.scales):
            own = [images.open(key) for key in keys[number * count : (number + 1) * count]]
            probe = asked_by_captions if scale == as_trained(task.settings.scales) else []
            found.append(ruler.measure(adapter, scale, eyes.see(own), probe))
            progress(len(found), total)
    return tuple(found)


def _described(task: EvaluationTask, encoders: Encoders, training: Sequence[Image.Image]) -> measures.Described | None:
    """Return the features of training images and their captions, if these differ from one another."""
    captions = [without_trigger(example.caption, task.trigger) for example in task.training]
    distinct = [number for number, caption in enumerate(captions) if caption and captions.count(caption) == 1]
    if len(distinct) < 2:
        return None
    images, texts = [training[number] for number in distinct], [captions[number] for number in distinct]
    return measures.Described(encoders.clip.images(images), encoders.clip.texts(texts))


def _captioned(task: EvaluationTask) -> list[list[int]]:
    """Return for each image that a caption asks for the numbers of its training images; of all, if many hide them."""
    captions = [example.caption for example in task.training]
    found = ([n for n, own in enumerate(captions) if own == caption] for caption in task.prompts.captions)
    return [numbers or [*range(len(captions))] for numbers in found for _ in range(COPY_SEEDS)]


@dataclass(frozen=True)
class _Ruler:
    """Features and names that every candidate is compared with."""

    base: _Seen
    training: torch.Tensor | None
    """Features of the training images; None without such."""
    texts: torch.Tensor
    """CLIP's features of the prompts with the trigger, without it, and of other things."""
    names: Sequence[str]
    """Names of the training images."""
    seeds: int
    details: measures.Details | None
    """Details of the training images; None without such."""
    base_details: measures.Details | None
    """Details of the base's images that training captions ask for; None without such captions."""
    described: measures.Described | None
    """Training images with captions that say what they show; None without such."""
    captioned: Sequence[Sequence[int]]
    """Numbers of the training images of each of those."""

    def measure(
        self, adapter: EvaluatedAdapter, scale: float, seen: _Seen, asked_by_captions: Sequence[Image.Image]
    ) -> Candidate:
        """Return the figures of one candidate; there are none of copies without images that captions asked for."""
        base, training = self.base, self.training
        own = [number // self.seeds for number in range(len(seen.asked))]
        figures: dict[str, Figure | None] = {
            "look": None if training is None else measures.look(seen.asked, base.asked, training),
            "prompts": measures.prompts_kept(seen.clip, base.clip, self.texts, own, self.described),
            "nearest": None if training is None else measures.nearest(seen.asked, base.asked, training),
            "diversity": measures.diversity(seen.asked, base.asked, self.seeds),
        }
        if training is not None and len(seen.of_class):
            figures["spill"] = measures.look(seen.of_class, base.of_class, training)
        if len(seen.unrelated):
            others = torch.cat([base.asked, base.of_class])
            figures["drift"] = measures.drift(seen.unrelated, base.unrelated, others)
        copied = ""
        if asked_by_captions and self.base_details and self.details:
            found = measures.details(asked_by_captions)
            figures["copies"], picture = measures.copies(found, self.base_details, self.details, self.captioned)
            copied = self.names[picture]
        taken = {name: figure for name, figure in figures.items() if figure is not None}
        nearest = "" if training is None else measures.most_frequent_nearest(seen.asked, training, self.names)
        return Candidate(adapter.name, adapter.step, scale, taken, nearest, copied)


def _write_sheet(evaluation: Evaluation, task: EvaluationTask, images: ImageFolder, wanted: Wanted) -> None:
    """Write the contact sheet: the base and each candidate, an image a prompt, and the training image nearest to it."""
    count = len(task.prompts.all) * task.settings.seeds
    files = {example.path.name: example.path for example in task.training}
    keys = {adapter.name: wanted[adapter] for adapter in task.adapters}
    rows = [SheetRow("base", [images.path(key) for key in wanted[None][:count]][:: task.settings.seeds])]
    for index, candidate in enumerate(evaluation.candidates):
        start = task.settings.scales.index(candidate.scale) * count
        own = keys[candidate.checkpoint][start : start + count : task.settings.seeds]
        title = f"step {candidate.step}, scale {candidate.scale:g}"
        nearest = files.get(candidate.copied or candidate.nearest)
        rows.append(SheetRow(title, [images.path(key) for key in own], nearest, index == evaluation.proposal.chosen))
    sheet = evaluation_sheet(rows, task.prompts.all)
    write_atomic(task.folder / SHEET, lambda path: write_image(sheet, path))
