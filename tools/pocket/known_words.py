"""Words that the small base has a meaning for, as a file beside it: `python -m tools.pocket.known_words`.

Whoever trains on it is told which of his words it cannot know, and the nearest that it does; its captioner says no
others.
"""

import json
import re
from pathlib import Path

from tools.pocket import captions, tokenizer, world

FILE = Path(__file__).parents[2] / "sdlora" / "pocket" / "known_words.json"
NEAR = {
    "house": "home building cottage hut cabin castle church tower barn villa farmhouse shed temple",
    "tree": "plant bush forest wood palm oak pine cactus leaf",
    "car": "truck bus van taxi vehicle automobile train tractor bicycle bike motorcycle jeep",
    "boat": "ship sailboat yacht canoe ferry raft submarine",
    "cat": "kitten dog puppy animal pet fox rabbit bunny mouse bear lion tiger wolf horse cow sheep pig hamster",
    "fish": "shark whale dolphin goldfish turtle octopus",
    "bird": "duck owl parrot eagle chicken penguin sparrow crow butterfly dragon",
    "flower": "rose tulip sunflower daisy lily blossom bouquet vase",
    "mushroom": "toadstool fungus",
    "cup": "mug glass bottle teapot bowl pot pitcher jar can",
    "rocket": "spaceship spacecraft plane airplane aircraft helicopter shuttle",
    "umbrella": "parasol tent hat",
    "red": "crimson scarlet maroon",
    "orange": "amber copper",
    "yellow": "gold golden blond blonde",
    "green": "lime olive teal",
    "blue": "navy cyan turquoise azure",
    "purple": "violet lilac magenta",
    "pink": "rose salmon",
    "brown": "beige tan wooden",
    "black": "dark",
    "white": "silver grey gray ivory pale",
    "on grass": "meadow lawn field garden park hill ground countryside farm",
    "on sand": "beach desert dune shore",
    "on snow": "ice winter snowy mountain arctic",
    "on water": "sea ocean lake river pond pool",
    "in the city": "street town road urban village market alley",
    "in space": "sky stars galaxy moon planet night",
    "flat drawing": "illustration vector sketch poster icon",
    "cartoon": "comic anime manga",
    "watercolor painting": "watercolour painted oil gouache ink",
    "clay model": "sculpture plasticine toy figurine doll 3d render",
    "picture": "photo photograph portrait snapshot",
}
"""Everyday words that it cannot know, by what it does know nearest to them."""

PASSED = """
a an the and or of to in on at by for from with without into out up down over under near behind before after between
is are was were be being been has have had do does it its he she they his her their this that these those as like very
"""
"""Words without a picture of their own: that they mean nothing to it matters to nobody. So are the free names for what
an adapter learns (``tokenizer.RARE``)."""


def vocabulary() -> dict[str, object]:
    """Return what the captions of its training could say."""
    templates = [form for forms in captions.STYLE_PHRASES.values() for form in forms] + [*captions.NO_STYLE]
    styles = {"flat drawing", "cartoon", "watercolor painting", "clay model"}
    named = {*world.OBJECTS, *world.COLOURS}
    phrases = " ".join([*templates, *captions.FILLERS, *world.PLACES, *tokenizer.RARE, PASSED])
    shown = named | {word for words in (*world.PLACES, *styles) for word in words.split()}
    other = {*re.findall(r"[a-z]+", phrases)} - shown
    return {
        "objects": [*world.OBJECTS],
        "colours": [*world.COLOURS],
        "places": [*world.PLACES],
        "styles": sorted(styles),
        "style_phrases": [forms[0] for forms in captions.STYLE_PHRASES.values()],
        "other": sorted(other),
        "near": {known: words.split() for known, words in NEAR.items()},
    }


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(vocabulary(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
