"""Settings of the training images and the class images, and the number of steps that images suggest.

The rules for steps follow what other trainers publish.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from sdlora.section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["style", "subject"]


class Data(Section):
    """The training images and their captions."""

    folder: Path
    """Folder of pictures, with `NAME.txt` captions beside them if there are any; kohya's `10_sks dog` folders work."""

    trigger: str = ""
    """Word that calls the adapter, such as `sks`. It is put before captions that lack it."""

    class_name: str = ""
    """Class of the subject, such as `dog`: pictures without a caption are then `trigger class`. Empty for a style."""

    prompt: str = ""
    """One caption for every picture that has none of its own; overrides trigger and class."""

    caption_prefix: str = ""
    """Words put before the text of every picture's caption, behind the trigger."""

    caption_suffix: str = ""
    """Words put behind the text of every picture's caption."""

    wildcards: bool = False
    """Draw one line of a caption of several, and one option of each `{red|blue}`, at every step. Else they are letters,
    and the lines are joined."""

    resolution: Annotated[int, Field(ge=64, le=4096)] | None = None
    """Side in pixels of the square whose area training pictures get. The base model's own size if not set."""

    buckets: bool = True
    """Keep each picture's shape by grouping similar ratios, instead of cropping all to a square."""

    random_crop: bool = False
    """Crop different parts of pictures that do not fit their bucket, instead of the centre."""

    crop: Literal["none", "subject"] = "none"
    """Crop pictures that have a mask to what it marks (`subject`), before they get their training size. Masks then crop
    even where `masks` is off."""

    crop_margin: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Margin around the subject on each side, as a share of its longer side, if `crop` is `subject`."""

    flip: bool = False
    """Train on mirrored pictures too. Not for lettering or lopsided subjects."""

    variants: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of crops of each picture in the cache if `random_crop` is on."""

    shuffle_captions: bool = False
    """Shuffle the comma-separated parts of each caption behind the first ones, as many as `keep_tokens`."""

    keep_tokens: Annotated[int, Field(ge=0, le=1000)] = 1
    """Comma-separated parts at the beginning of each caption that are neither shuffled nor dropped; the trigger stands
    there."""

    tag_dropout: Fraction = 0.0
    """Chance of each comma-separated part behind the first `keep_tokens` to be left out, drawn anew at each step."""

    caption_dropout: Fraction = 0.0
    """Share of examples trained without any caption."""

    preserve_empty: Fraction = 0.0
    """Share of examples that are trained without a caption towards the base's own prediction. Guidance then strengthens
    what is learnt; else it strengthens the words alone, and a look fades. Try 0.1 with as much `caption_dropout`."""

    preserve_untriggered: Fraction = 0.0
    """Share of examples that are trained without the trigger towards the base's own prediction, so that only the
    trigger calls what is learnt."""

    caption_weights: bool = False
    """Read `(word:1.2)` in captions as a weight, as in prompts. Else brackets are letters, as taggers write them."""

    masks: bool = True
    """Let masks (`NAME.mask.png`, other tools' `NAME_mask.png`, or a folder `masks`), or a picture's own transparency,
    weight the loss."""

    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """Colour put behind transparent pictures."""

    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the pictures that are held out of training, to measure the loss on them: at least one, never all. Which
    ones depends on their content alone."""

    validation_folder: Path | None = None
    """Folder of held-out pictures with their captions, instead of `validation_share`."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Data":
        if self.validation_share and self.validation_folder is not None:
            raise ValueError("set validation_share or validation_folder, not both")
        if self.preserve_empty + self.preserve_untriggered >= 1:
            raise ValueError("preserve_empty and preserve_untriggered leave nothing to learn; their sum is below 1")
        if self.preserve_untriggered and not self.trigger:
            raise ValueError("preserve_untriggered needs a trigger; set data.trigger")
        return self

    @property
    def reads_masks(self) -> bool:
        """Whether masks weight the loss, or crop."""
        return self.masks or self.crop == "subject"

    @property
    def kind(self) -> Kind:
        """A subject if the class is named, else a style."""
        return "subject" if self.class_name else "style"


class Concept(Data):
    """One of several things that a run learns: its images, words, class images and weights.

    Settings of `data` that it does not set itself are those of the run.
    """

    repeats: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Times that each picture is seen in an epoch, instead of the number in a folder's name. If neither says it, as
    often as makes the concept as large as the largest."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor of the loss of its pictures, and of its class pictures."""

    prior_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of its class pictures' loss; `prior.weight` if not set, 0 preserves nothing."""

    class_prompt: str = ""
    """Prompt of its class pictures, such as `a dog`. If empty, its captions without the trigger, in turn, or `a` and
    the class name."""

    class_folder: Path | None = None
    """Folder with class pictures of your own. Concepts of one class share theirs."""

    class_count: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Number of class pictures; `prior.count` if not set."""


class ClassImageSettings(Section):
    """Number, source and weight of the class images of a run."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the class pictures' loss; 0 turns prior preservation off, 1 is usual."""

    class_prompt: str = ""
    """Prompt of the class pictures, such as `a dog`. If empty, the captions without the trigger, in turn, or `a` and
    the class name."""

    folder: Path | None = None
    """Folder with class pictures of your own, left as it is: missing ones are made by the base and kept elsewhere."""

    target: Literal["pictures", "base"] = "pictures"
    """Target of class examples: the class `pictures`, or the prediction of the `base` without the adapter for them
    (calmer, for more time a step)."""

    outside_masks: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of the base's own prediction outside the masks, so that what they leave out stays as the base has it; 0
    leaves it free."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of class pictures to use."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first class picture; the next has seed + 1."""


class StepRule(NamedTuple):
    """Number of times that each image is seen, and bounds of images seen in total."""

    per_image: int
    least: int
    most: int


STEP_RULES: dict[Kind, StepRule] = {
    # diffusers' DreamBooth LoRA page: 5 pictures, batch 1, 500 steps; its full training: 800 to 1200
    "subject": StepRule(per_image=100, least=400, most=1500),
    # 1000 steps for a dozen pictures (cloneofsimo/lora); more images bring variety, and need fewer repetitions each
    "style": StepRule(per_image=80, least=600, most=4000),
}


class ImageSet(NamedTuple):
    """Kind of a concept, number of its images, and of those in an epoch, counting repeats."""

    kind: Kind
    images: int
    seen: int

    @property
    def suggested_views(self) -> int:
        """Number of images, counting each time, that a run of them should see."""
        rule = STEP_RULES[self.kind]
        return min(max(self.images * rule.per_image, rule.least), rule.most)


def suggested_steps(images: int, kind: Kind, batch_size: int = 1) -> int:
    """Suggest optimizer steps for a number of images, rounded up to tens.

    ``batch_size`` counts all images of a step: with accumulation, on all processes.
    """
    return suggested_steps_together([ImageSet(kind, images, images)], batch_size)


def suggested_steps_together(sets: Iterable[ImageSet], batch_size: int = 1) -> int:
    """Suggest optimizer steps for several concepts: as many images as runs of each alone would see."""
    seen = sum(one.suggested_views for one in sets)
    return -(-seen // (10 * batch_size)) * 10
