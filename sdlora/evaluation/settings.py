"""Settings of an evaluation. No torch."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from sdlora.generation.settings import LARGEST_SEED, Sampler, Steps
from sdlora.section import Section


def _split_numbers(value: Any) -> Any:
    """Return numbers that stand in one text, or in several, with commas between them, as a list."""
    parts = value.split(",") if isinstance(value, str) else value
    return list(_flat(parts)) if isinstance(parts, list | tuple) else parts


def _flat(parts: Any) -> Iterator[Any]:
    for part in parts:
        yield from (word.strip() for word in part.split(",") if word.strip()) if isinstance(part, str) else [part]


def _each_once(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(numbers))


COPY_SEEDS = 3
"""Images of each training caption: what comes from each of their seeds is memorised."""
MOST_SEEDS = 16
Scale = Annotated[float, Field(gt=0, le=2)]
Step = Annotated[int, Field(ge=0, le=10**9)]
"""Steps that a checkpoint was trained for."""
Prompts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=24)]


class EvaluationSettings(Section):
    """Evaluation of a run's checkpoints by what they generate."""

    checkpoints: Annotated[tuple[Step, ...], Field(max_length=100), BeforeValidator(_split_numbers)] = ()
    """Steps of the checkpoints to compare, such as `60, 120, 180`. All of them if left out."""

    scales: Annotated[
        tuple[Scale, ...],
        Field(min_length=1, max_length=8),
        BeforeValidator(_split_numbers),
        AfterValidator(_each_once),
    ] = (
        0.6, 0.8, 1.0,
    )  # fmt: skip
    """Scales to compare each checkpoint at."""

    prompts: Prompts = ()
    """Prompts with the trigger, which no training picture shows. Proposed from the captions if left out."""

    class_prompts: Prompts = ()
    """Prompts without the trigger: what must stay as the base has it. Those of `prompts` without it if left out."""

    unrelated_prompts: Prompts = ()
    """Prompts of other things, by which drift of the base is seen. Proposed if left out."""

    seeds: int = Field(default=2, ge=1, le=MOST_SEEDS)
    """Images of each prompt, each from noise of its own; the base's start from the same."""

    seed: int = Field(default=1, ge=0, le=LARGEST_SEED - MOST_SEEDS)
    """Seed of the first image of each prompt."""

    steps: Steps = 12
    """Sampling steps: fewer than for single images, as all that is compared has the same."""

    cfg: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance scale; that of the run's previews if left out."""

    sampler: Sampler | None = None
    """Sampler by its A1111 name; that of the run's previews if left out."""

    concept: int = Field(default=1, ge=1, le=64)
    """Number of the concept that is judged, of a run with several."""

    encoder: str = ""
    """Model that compares images: `pocket` (the bundled CLIP), or a folder or hub id with a CLIP or a DINOv2. Chosen
    for the base model if left out: a DINOv2 for subjects, a CLIP for styles."""

    clip: str = ""
    """Model that compares images with prompts: `pocket`, or a folder or hub id with a CLIP. Chosen for the base model
    if left out."""

    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """Images generated at once; as many as memory allows if left out."""

    device: str = "auto"
    """Device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
