"""Settings of the training images and the class images."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sdlora.data.step_heuristics import Kind
from sdlora.section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


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

    resolution: Annotated[int, Field(ge=64, le=4096)] | None = None
    """Side in pixels of the square whose area training pictures get. The base model's own size if not set."""

    buckets: bool = True
    """Keep each picture's shape by grouping similar ratios, instead of cropping all to a square."""

    random_crop: bool = False
    """Crop different parts of pictures that do not fit their bucket, instead of the centre."""

    flip: bool = False
    """Train on mirrored pictures too. Not for lettering or lopsided subjects."""

    variants: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of crops of each picture in the cache if `random_crop` is on."""

    shuffle_captions: bool = False
    """Shuffle the comma-separated parts of each caption behind the first one."""

    caption_dropout: Fraction = 0.0
    """Share of examples trained without any caption."""

    masks: bool = True
    """Let `NAME.mask.png`, or a picture's own transparency, weight the loss."""

    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """Colour put behind transparent pictures."""

    @property
    def kind(self) -> Kind:
        """A subject if the class is named, else a style."""
        return "subject" if self.class_name else "style"


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

    count: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of class pictures to use."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first class picture; the next has seed + 1."""
