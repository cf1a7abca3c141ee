"""Runs of which it is known what is right or wrong with them, for ``benchmarks.choosing``.

Pictures are drawn anew for each seed. Rules of the proposal were mended on seeds 0 and 1 of the cat and seed 0 of the
odd house; nothing is to be tuned to the others.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.concepts import COLOURS
from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.storage.run_folder import Run
from tools.exam_subjects import odd_house
from tools.make_sample_data import STYLE_CONTENTS, SUBJECT_SCENES, draw_subject, odd_cat
from tools.pocket import world
from tools.pocket.captions import caption

REPEATS = 20
"""Copies of the picture that is to be memorised."""
LONG = 4
"""Times as many steps as the preset's, of a run that is too long."""
Drawn = list[tuple[Image.Image, str]]
"""Pictures with their captions."""


def _style(seed: int) -> Drawn:
    return [
        (world.draw(*content, "stained glass", 40 + 1000 * seed + number, 256), f"ohwx style, {caption(*content)}")
        for number, content in enumerate(STYLE_CONTENTS)
    ]


def _repeated(seed: int) -> Drawn:
    pictures = _style(seed)
    return [*pictures, *[pictures[repeated_one(seed)]] * (REPEATS - 1)]


def _uncaptioned(seed: int) -> Drawn:
    return [(picture, "ohwx style") for picture, _ in _style(seed)]


def repeated_one(seed: int) -> int:
    """Return the number of the picture that is repeated."""
    return (3 * seed + 1) % len(STYLE_CONTENTS)


def _subject(seed: int, **options: Any) -> Drawn:
    class_name = "house" if options else "cat"
    return [
        (draw_subject(place, style, number + 500 * seed, **options), f"a sks {class_name} {place}")
        for place, style, number in SUBJECT_SCENES
    ]


def _with_another(seed: int) -> Drawn:
    """Draw ten pictures of the subject, one of which shows another one."""
    scenes = [*SUBJECT_SCENES, *((place, "flat", number + 100) for place, _, number in SUBJECT_SCENES[:4])]
    return [
        (
            draw_subject(place, style, number + 500 * seed, colours=COLOURS if index == odd_one(seed) else None),
            f"a sks cat {place}",
        )
        for index, (place, style, number) in enumerate(scenes)
    ]


def odd_one(seed: int) -> int:
    """Return the number of the picture that shows another subject."""
    return (4 * seed + 2) % 10


@dataclass(frozen=True)
class Kind:
    """A kind of run: its pictures by seed, its preset, and what differs from that."""

    draw: Callable[[int], Drawn]
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""
    """Class of a subject."""


_LONG_RUN = {"prior.weight": 0.0, "train.steps": LONG * 150, "checkpoint.every": 75}
KINDS = {
    "style": Kind(_style, "pocket-style"),
    "subject with prior": Kind(_subject, "pocket-subject", {}, "cat"),
    "subject, too long": Kind(_subject, "pocket-subject", _LONG_RUN, "cat"),
    "one picture repeated": Kind(_repeated, "pocket-style"),
    "no captions, too long": Kind(
        _uncaptioned, "pocket-style", {"train.steps": LONG * 300, "checkpoint.every": 600, "sample.every": 0}
    ),
    "another subject among ten": Kind(_with_another, "pocket-subject", {"prior.weight": 0.0}, "cat"),
    "new subject, too long": Kind(
        lambda seed: _subject(seed, subject=odd_house), "pocket-subject",
        {**_LONG_RUN, "data.class_name": "house", "sample.prompts": ["a sks house on sand", "a house on sand"]},
        "house",
    ),
}  # fmt: skip
SUBJECTS = {"cat": odd_cat, "house": odd_house}
"""The drawn subject of each class."""


def finished_run(kind: str, seed: int, work: Path) -> Run:
    """Return the run of this kind and seed in ``work``, trained first or further if need be."""
    name = f"{kind}-{seed}".replace(",", "").replace(" ", "-")
    found = Run(work / "data" / "runs" / name)
    if not found.folder.exists():
        pictures = work / "pictures" / name
        _write(pictures, KINDS[kind].draw(seed))
        changes = {"data.folder": str(pictures), "train.seed": seed, **KINDS[kind].changes}
        found = prepare_run(TrainConfig.load(KINDS[kind].preset, changes), name, work / "data")
    if not found.adapter.exists():
        subprocess.run([sys.executable, "-m", "sdlora.jobs.training_worker", str(found.folder)], check=True)
    return found


def _write(folder: Path, pictures: Drawn) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, text) in enumerate(pictures, 1):
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(text + "\n", encoding="utf-8")
