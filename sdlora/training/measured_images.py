"""Choose the images on which a run measures its loss, and how often: by counts alone, never by the clock.

A resumed run therefore measures what and when an uninterrupted one does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from sdlora.data.cache import View
from sdlora.data.captions import caption_readings
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept
from sdlora.seeds import derive
from sdlora.training.settings import Monitor

SHARE = 0.04
"""Share of a run's work that measurements may take, if nobody says how often they are made."""
FEW = 12
"""Trained images of which each is measured once, before there are more measurements between first and last step."""
EARLY = 6
"""Part of a run, one over this, after which all images are measured: by its end each is learnt, whatever it shows."""
STEP_PASSES = 3
"""Work of a step for each of its images, in predictions without gradients: forward, and twice that backward."""
MOST_POINTS = 40
"""Measurements between the first step and the last."""


@dataclass(frozen=True)
class MeasuredImage:
    """An image on which the loss is measured: always the same crop with the same caption."""

    name: str
    view: View
    caption: str
    held_out: bool = False
    always: bool = True
    """Whether every measurement has it, or those of ``MeasuringPlan.full`` alone."""


class MeasuringPlan(NamedTuple):
    """Images to measure, and the steps between measurements. The first and the last step have one too."""

    images: Sequence[MeasuredImage] = ()
    every: int = 0
    timesteps: int = 0
    """Number of timesteps at which each image is measured."""
    full: tuple[int, ...] = ()
    """Steps of the measurements that have all images."""
    is_base_at_start: bool = True
    """Whether the adapter changes nothing before the first step: the base's losses are its own then."""

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether there is a measurement after ``step`` of ``steps``."""
        often = self.every > 0 and step % self.every == 0
        return bool(self.images) and (often or step in (0, *self.full, steps))

    def measured_at(self, step: int) -> list[MeasuredImage]:
        """Return the images of the measurement after ``step``."""
        return [image for image in self.images if image.always or step in self.full]

    def ending_at(self, step: int) -> "MeasuringPlan":
        """Return the plan of a run that ends at ``step``, before its time: what has all images is not left out."""
        return self._replace(full=tuple(min(step, each) for each in self.full))

    def share(self, steps: int, per_step: int) -> float:
        """Return about the work of all measurements over that of ``steps`` with so many images ``per_step``."""
        points = {*self.steps_before(steps), 0, *self.full, steps} - ({0} if self.is_base_at_start else set())
        measured = len(self.images) + sum(len(self.measured_at(step)) for step in points)
        return measured * self.timesteps / (steps * per_step * STEP_PASSES)

    def steps_before(self, steps: int, begin: int = 0) -> range:
        """Return the steps of the measurements from step ``begin`` on, before the last of ``steps``."""
        return (
            range(-(-begin // self.every) * self.every, steps, self.every) if self.images and self.every else range(0)
        )


class _Counts(NamedTuple):
    """Number of images that few measurements have, steps between measurements, and whether the last has all images."""

    further: int
    every: int
    all_at_end: bool


def plan_measurements(
    settings: Monitor,
    seed: int,
    steps: int,
    per_step: int,
    concepts: Sequence[Concept],
    trained: Sequence[tuple[Example, ImageSize]],
    held_out: Sequence[tuple[Example, ImageSize]],
    least: int = 0,
    is_base_at_start: bool = True,
) -> MeasuringPlan:
    """Choose images, each with its bucket, for a run of ``steps`` with so many images ``per_step`` in one process.

    Each concept has about as many as another. About ``least`` measurements are made between the first step and the
    last, whatever they cost, if ``settings`` do not say how often. An adapter that ``is_base_at_start`` needs none
    before the first step but the base's.
    """
    trained, held_out = (_in_turn(each, seed) for each in (trained, held_out))
    always = len(trained[: settings.images]) + len(held_out[: settings.images])
    counts = _count(settings, steps, per_step, always, len(trained) - settings.images, least, is_base_at_start)
    if counts is None:
        return MeasuringPlan()
    chosen = [
        *((example, size, False, number < settings.images) for number, (example, size) in enumerate(trained)),
        *((example, size, True, True) for example, size in held_out[: settings.images]),
    ]
    kept = [one for one in chosen if one[3]] + [one for one in chosen if not one[3]][: counts.further]
    names = _names([example for example, *_ in kept])
    images = [
        MeasuredImage(name, View(example, size), _caption(example, concepts), held, every)
        for name, (example, size, held, every) in zip(names, kept, strict=True)
    ]
    early = (max(1, round(steps / EARLY)),) if counts.further else ()
    full = (*early, steps) if counts.all_at_end else early
    return MeasuringPlan(images, counts.every, settings.timesteps, full, is_base_at_start)


def _count(
    settings: Monitor, steps: int, per_step: int, always: int, others: int, least: int, is_base_at_start: bool
) -> _Counts | None:
    """Share the work that measurements may take: base, first and last step, then ``FEW`` images, or half for more.

    None without measurements.
    """
    if settings.every == 0:
        return None
    each = always * settings.timesteps
    left = SHARE * steps * per_step * STEP_PASSES - each * (2 if is_base_at_start else 3)
    if settings.every is None and left < 0 and not least:
        return None
    own = 2 * settings.timesteps  # Both the base and the adapted model.
    most = max(int(left / 2 / own), FEW - settings.images)
    further = max(0, min(others, most, int((left - each) / own)))
    left -= each + own * further if further else 0
    all_at_end = left >= each + settings.timesteps * further
    left -= settings.timesteps * further if all_at_end else 0
    points = max(least, min(MOST_POINTS, int(left / each)))
    every = -(-steps // (points + 1)) if settings.every is None else settings.every
    return _Counts(further, every, all_at_end)


def _in_turn(found: Sequence[tuple[Example, ImageSize]], seed: int) -> list[tuple[Example, ImageSize]]:
    """Return the images in an order of chance that ``seed`` decides, those of the concepts in turn."""
    groups: dict[int, list[tuple[Example, ImageSize]]] = {}
    different = {
        example.digest or str(example.path): (example, size) for example, size in found
    }  # A copy tells no more.
    for key in sorted(different, key=lambda key: derive(seed, "measured", key)):
        groups.setdefault(different[key][0].concepts[0], []).append(different[key])
    rounds = zip_longest(*(groups[concept] for concept in sorted(groups)))
    return [one for one in chain.from_iterable(rounds) if one is not None]


def _caption(example: Example, concepts: Sequence[Concept]) -> str:
    """Return the caption as it is without dropout and shuffling; of several readings the first."""
    return caption_readings(example.caption, concepts[example.concepts[0]])[0]


def _names(examples: Sequence[Example]) -> list[str]:
    """Return how the images are called: by their files' names, with the folder where two have the same."""
    files = [example.path.name for example in examples]
    named = [
        name if files.count(name) == 1 else f"{example.path.parent.name}/{name}"
        for name, example in zip(files, examples, strict=True)
    ]
    return [name if name.isprintable() else ascii(name) for name in named]
