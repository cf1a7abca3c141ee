"""The base's tokenizer: CLIP's byte-level BPE, trained on the world's captions and some everyday English."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from tools.pocket import captions, world

RARE = ("sks", "ohwx", "zwx", "qxj", "vtk", "bnha")
"""Identifiers that are one token each and stand in no caption: free names for what an adapter learns."""
MERGES = 1500
ENGLISH = """
a an the and or of to in on at by for from with without under over near behind before after between into out up down
is are was be been being has have had do does did can could will would should may might must not no yes this that
these those it its he she they we you i his her their our your my me him them us who what which where when why how
all any some many much more most few less one two three four five six seven eight nine ten first second third last
next new old young big small large little tiny huge great long short tall wide narrow thick thin high low deep
bright dark light pale soft hard smooth rough clean dirty warm cold hot cool fresh dry wet good bad best better
beautiful pretty ugly nice lovely happy sad angry funny strange odd simple plain detailed realistic abstract modern
ancient photo photograph picture image painting drawing sketch illustration art artwork style portrait landscape
scene view close wide shot background foreground color colour black white grey gray red orange yellow green blue
teal cyan turquoise purple violet pink magenta brown gold golden silver striped spotted dotted colorful person man
woman boy girl child baby people friend family king queen knight wizard robot dog cat horse cow sheep pig bird fish
lion tiger bear rabbit fox wolf mouse elephant monkey dragon house home castle tower bridge street road city town
village garden park forest wood tree flower grass leaf mountain hill river lake sea ocean beach sand snow ice rain
cloud sky sun moon star space planet rocket ship boat car bus train plane bicycle cup mug bottle plate table chair
bed door window wall floor roof room hat coat dress shoe bag book paper pen glass stained neon metal stone clay
paper oil pencil ink watercolor cartoon flat comic anime pixel vintage mushroom umbrella toy doll ball box lamp
clock key ring heart food cake bread apple fruit water fire air earth morning evening night day summer winter spring
autumn standing sitting lying running walking flying swimming wearing holding looking quality resolution sharp
blurry lighting soft shadow glow glowing studio high low very really masterpiece trending wearing made like
"""


def _corpus(seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    names = world.OBJECTS, world.COLOURS, world.PLACES, world.STYLES
    drawn = [captions.phrase(rng, *(str(rng.choice(n)) for n in names)) for _ in range(3000)]
    return [text for text in drawn if "," not in text] + [" ".join(ENGLISH.split())] * 40


def _alphabet() -> list[str]:
    """The 256 byte letters in CLIP's order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (ord(c) > 255, ord(c)))


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def train_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv:1508.07909): join the most frequent neighbours, again and again; ties by alphabet."""
    words = Counter(word for text in texts for word in text.lower().split())
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        pieces = {word: _merged(parts, merges[-1]) for word, parts in pieces.items()}
    return merges


def _assemble(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    letters = _alphabet()
    words = list(dict.fromkeys(letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]))
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def build() -> CLIPTokenizer:
    """Train it anew; the same on every machine."""
    merges = train_merges(_corpus(), MERGES)
    for word in RARE:
        pieces = _assemble(merges).tokenize(word)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return _assemble(merges)


def load(folder: Path) -> CLIPTokenizer:
    """The tokenizer saved in `folder`, built and saved there first where there is none."""
    if not (folder / "tokenizer_config.json").exists():
        build().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
