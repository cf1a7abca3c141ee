"""Settings of captions that a model writes. No torch."""

from typing import Annotated, Literal

from pydantic import Field

from sdlora.data.settings import Fraction
from sdlora.section import Section

Mode = Literal["empty", "append", "replace"]


class CaptionSettings(Section):
    """Captions that a model writes for training images."""

    model: str = "pocket"
    """Model that writes the captions: `pocket` (the bundled one, for its own world), or a folder or hub id with a BLIP,
    a Florence-2 or a WD14 tagger."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    mode: Mode = "empty"
    """Treatment of captions that are there: they stay, and only `empty` ones are written; new words are put behind
    them (`append`); or they are replaced (`replace`)."""

    trigger: str = ""
    """Trigger word to put first. Training puts it before captions that lack it by itself."""

    class_name: str = ""
    """Class of the subject, such as `cat`: `pocket` then says that instead of what it sees, and no colour."""

    prefix: str = ""
    """Words put before each new caption."""

    blacklist: tuple[str, ...] = ()
    """Words or tags that no new caption may have."""

    threshold: Fraction = 0.35
    """Probability below which `pocket` leaves out a word, and a tagger a tag."""

    character_threshold: Fraction = 0.85
    """Probability below which a tagger leaves out the name of a character."""

    max_words: Annotated[int, Field(ge=1, le=500)] = 60
    """Longest new caption, in words. Taggers leave out the least likely tags."""

    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Images that the model sees at once."""

    device: str = "auto"
    """Device that the model runs on: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
