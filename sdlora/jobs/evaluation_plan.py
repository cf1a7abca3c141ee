"""The inputs of an evaluation of a run: its concept, images, captions, prompts and checkpoints. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

from sdlora.config import TrainConfig
from sdlora.data.captions import without_trigger
from sdlora.data.concepts import load_concepts
from sdlora.data.dataset import Example
from sdlora.data.settings import Concept, Kind
from sdlora.errors import ConfigError
from sdlora.evaluation.encoder_sources import EncoderNames, choose_encoders
from sdlora.evaluation.prompts import EvaluationPrompts, complete_prompts, propose_prompts
from sdlora.evaluation.proposal import TrainedAs
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.families.known_words import known_words
from sdlora.generation.settings import ImageSettings
from sdlora.storage.run_folder import Run


class ConceptData(NamedTuple):
    """One concept of a run, and its training images."""

    concept: Concept
    examples: tuple[Example, ...]

    @property
    def captions(self) -> list[str]:
        return [example.caption for example in self.examples]


def find_concept(config: TrainConfig, number: int) -> Concept:
    """Return the concept ``number``, counted from 1. Raises ConfigError if there is none."""
    concepts = config.all_concepts
    if number > len(concepts):
        raise ConfigError(f"concept = {number}: the run has {len(concepts)}; give 1 to {len(concepts)}")
    return concepts[number - 1]


def concept_data(config: TrainConfig, number: int) -> ConceptData:
    """Return the concept ``number`` with its images. Raises as ``find_concept`` does, and DatasetError for them."""
    concept = find_concept(config, number)
    return ConceptData(concept, load_concepts([concept]).examples)


def plan_prompts(
    base: str, data: ConceptData, settings: EvaluationSettings, previews: Sequence[str] = ()
) -> EvaluationPrompts:
    """Return the prompts of an evaluation: those of ``settings``, the others proposed from the captions."""
    trigger, class_name = data.concept.trigger, data.concept.class_name
    known, repeats = known_words(base), [example.repeats for example in data.examples]
    proposed = propose_prompts(data.captions, trigger, class_name, previews, repeats, known)
    edited = EvaluationPrompts(settings.prompts, settings.class_prompts, settings.unrelated_prompts)
    return complete_prompts(proposed, edited, trigger)


def plan_sampling(config: TrainConfig, settings: EvaluationSettings) -> ImageSettings:
    """Return how images are sampled: as the run's previews, but for what ``settings`` say."""
    clip_skip = config.sample.clip_skip
    if clip_skip == type(config.sample).model_fields["clip_skip"].default:
        clip_skip = config.train.clip_skip  # As previews do: the layer that was trained with.
    return sampled_as(ImageSettings.from_section(config.sample, clip_skip=clip_skip), settings)


def sampled_as(images: ImageSettings, settings: EvaluationSettings) -> ImageSettings:
    """Return ``images`` with what ``settings`` say of sampling."""
    said = {name: value for name in ("steps", "cfg", "sampler") if (value := getattr(settings, name)) is not None}
    return ImageSettings.from_section(images, **said)


def plan_encoders(base: str, kind: Kind, settings: EvaluationSettings) -> EncoderNames:
    """Return the models that compare images: those of ``settings``, else what suits the base and the kind."""
    return choose_encoders(base, kind, settings.encoder, settings.clip)


def choose_steps(run: Run, wanted: Sequence[int]) -> list[int]:
    """Return the steps of the checkpoints to compare. Raises ConfigError if the run has none, or lacks one."""
    steps = list(run.checkpoint_files())
    if not steps:
        raise ConfigError(f"{run.name}: this run has saved no checkpoints yet; train on, or set checkpoint.every")
    if missing := sorted({*wanted} - {*steps}):
        raise ConfigError(f"{run.name}: there is no checkpoint {missing[0]}; there are: {', '.join(map(str, steps))}")
    return sorted({*wanted}) or steps


def trained_as(data: ConceptData) -> TrainedAs:
    """Return the settings of a training that advice depends on."""
    concept = data.concept
    bare = (without_trigger(caption, concept.trigger).casefold().strip() for caption in data.captions)
    says_more = any(text not in ("", concept.class_name.casefold()) for text in bare)
    return TrainedAs(concept.prior_weight or 0.0, says_more)
