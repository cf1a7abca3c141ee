"""Write the words that the base knows beside it, as data: ``python -m tools.pocket.words``."""

import json
from pathlib import Path

from sdlora.families.base_words import FILE
from tools.pocket import captions, world
from tools.pocket.tokenizer import RARE
from tools.pocket.train import FOLDER


def words() -> dict[str, tuple[str, ...]]:
    """The fields of a ``BaseWords``."""
    return {
        "objects": world.OBJECTS,
        "colours": world.COLOURS,
        "places": world.PLACES,
        "phrases": tuple(dict.fromkeys(captions.NO_STYLE)),
        "styles": tuple(forms[0] for forms in captions.STYLE_PHRASES.values()),
        "free": RARE,
    }


def written(folder: Path = FOLDER) -> Path:
    """Write the file into the base's ``folder``, and return its path."""
    path = folder / FILE
    path.write_text(json.dumps(words(), indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(written())
