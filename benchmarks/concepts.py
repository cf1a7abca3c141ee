"""Two subjects of one class in one adapter: ``python -m benchmarks.concepts --output FILE.json``.

The sample cat (``sks``) and the same cat in other colours (``ohwx``), six pictures each. Trained apart (and then used
alone, or both at once), and together as two concepts of one run of as many steps. Likeness of each trigger's images to
its own subject and to the other one says what was learnt and what is confused; that of "a cat" says what spilled over.

With ``--penalties``, runs of two concepts are repeated with these values of ``loss.concept_overlap``.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.held_out import CFG, PLACES, SEEDS, STEPS, likeness_of_pairs
from benchmarks.report import command, machine, versions
from sdlora.config import TrainConfig
from sdlora.evaluation.fidelity import Clip, clip_i
from sdlora.generation.studio import Studio
from sdlora.training import trainer
from sdlora.training.concept_overlap import concept_overlap, concept_texts, reading_updates
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from tools.make_sample_data import BAND, DARK, HAT, PALE, SUBJECT_SCENES, TEAL, draw_subject

TRIGGERS = ("sks", "ohwx")
CLASS = "cat"
COLOURS = {
    TEAL: (206, 62, 96), DARK: (104, 18, 42), PALE: (255, 222, 228), HAT: (34, 112, 58), BAND: (240, 240, 244),
}  # fmt: skip
"""Colours of the second subject, by those of the first: red, with a green hat."""
ALONE = 150
"""Steps of a run of one subject, as in the preset; a run of both has twice as many."""


def draw_pictures(work: Path) -> dict[str, Path]:
    """Draw both subjects, and return their folders by trigger."""
    folders = {}
    for number, trigger in enumerate(TRIGGERS):
        folder = folders[trigger] = work / trigger
        folder.mkdir()
        for index, (place, style, seed) in enumerate(SUBJECT_SCENES, 1):
            picture = draw_subject(place, style, seed + 500 * number, colours=COLOURS if number else None)
            picture.save(folder / f"{index:02d}.png")
            (folder / f"{index:02d}.txt").write_text(f"a {trigger} {CLASS} {place}\n", encoding="utf-8")
    return folders


def train(config: TrainConfig, folder: Path, cache: Path) -> tuple[Path, dict[str, float]]:
    """Train ``config`` in this process; the adapter, its seconds, and how far two updates overlap at the end."""
    output, loops = RunPaths(folder), []
    for path in (output.samples, output.checkpoints):
        path.mkdir(parents=True)

    class Kept(trainer.TrainLoop):
        def run(self) -> bool:
            loops.append(self)
            return super().run()

    begun = time.monotonic()
    with patch.object(trainer, "TrainLoop", Kept):
        trainer.train(TrainJob(**dict(config), output=output, cache=cache))
    facts, [loop] = {"seconds": time.monotonic() - begun}, loops
    if config.concepts:
        texts = concept_texts(config.all_concepts)
        with torch.no_grad():
            rows = loop.state.encode(texts, 1).text
        lengths = [len(loop.state.family.token_ids_without_special(text)) for text in texts]
        facts["overlap"] = concept_overlap(reading_updates(loop.trained.parts), rows, lengths).item()
    return output.adapter, facts


class Evaluation:
    """Likeness of images of both triggers, and of the class, to both subjects."""

    def __init__(self, clip: Clip, studio: Studio, folders: dict[str, Path], steps: int):
        self.clip, self.studio, self.steps = clip, studio, steps
        self.own = {
            trigger: clip.subjects([studio_image(path) for path in sorted(folder.glob("*.png"))])
            for trigger, folder in folders.items()
        }
        self.prompts = {
            **{trigger: [f"a {trigger} {CLASS} {place}" for place in PLACES] for trigger in TRIGGERS},
            "class": [f"a {CLASS} {place}" for place in PLACES],
        }

    def likeness(self, called: str) -> dict[str, float]:
        """Return the likeness of the images that ``called`` names to each subject, with the adapters of now."""
        images = self.studio.generate(self.prompts[called], seed=100, count=SEEDS, steps=self.steps, cfg=CFG)
        features = self.clip.subjects(images)
        return {trigger: clip_i(features, own) for trigger, own in self.own.items()}

    def table(self, *adapters: tuple[str, Path], names: tuple[str, ...] = (*TRIGGERS, "class")) -> dict[str, Any]:
        """Return the likeness for each of ``names`` with ``adapters`` at scale 1."""
        for name, path in adapters:
            self.studio.add_adapter(name, path)
        try:
            return {called: self.likeness(called) for called in names}
        finally:
            for name, _ in adapters:
                self.studio.remove_adapter(name)


def studio_image(path: Path) -> Any:
    """Return the image in a file."""
    from PIL import Image

    return Image.open(path).convert("RGB")


def summary(table: dict[str, Any]) -> dict[str, float]:
    """Return the means over both triggers: likeness to its own subject, to the other one, and their difference."""
    one, other = TRIGGERS
    own = (table[one][one] + table[other][other]) / 2
    wrong = (table[one][other] + table[other][one]) / 2
    return {"own": own, "wrong": wrong, "apart": own - wrong}


def note_apart(
    work: Path,
    folders: dict[str, Path],
    evaluation: Evaluation,
    options: argparse.Namespace,
    common: dict[str, Any],
    note: Callable[[str, dict[str, Any], dict[str, float]], None],
) -> None:
    """Train each subject alone; note the figures of each adapter for its own trigger, and of both at once."""
    alone: dict[str, Path] = {}
    tables, seconds = {}, 0.0
    for trigger in TRIGGERS:
        words = {"data.folder": str(folders[trigger]), "data.trigger": trigger, "train.steps": options.alone}
        config = TrainConfig.load("pocket-subject", {**common, **words})
        alone[trigger], facts = train(config, work / f"alone-{trigger}", work / "cache")
        tables |= evaluation.table((trigger, alone[trigger]), names=(trigger,))
        seconds += facts["seconds"]
    note("apart, one at a time", tables, {"seconds": seconds})
    note("apart, both at once", evaluation.table(*alone.items()), {"seconds": seconds})


def runs(work: Path, folders: dict[str, Path], evaluation: Evaluation, options: argparse.Namespace) -> dict[str, Any]:
    """Train everything, and return the figures by the name of what was trained."""
    common = {"checkpoint.every": 0, "sample.every": 0, "train.seed": options.seed, "train.device": "cpu"}
    figures: dict[str, Any] = {}

    def note(name: str, table: dict[str, Any], facts: dict[str, float]) -> None:
        figures[name] = {"likeness": table, **summary(table), **facts}
        print(json.dumps({name: figures[name]}), file=sys.stderr, flush=True)

    if not options.only_together:
        note("base", evaluation.table(), {})
        note_apart(work, folders, evaluation, options, common, note)
    concepts = [{"folder": str(folder), "trigger": name, "class_name": CLASS} for name, folder in folders.items()]
    both = TrainConfig.load("pocket-subject", {**common, "concepts": concepts, "train.steps": 2 * options.alone})
    for penalty in (0.0, *options.penalties):
        name = f"together, penalty {penalty:g}" if penalty else "together"
        config = both.model_copy(update={"loss": both.loss.model_copy(update={"concept_overlap": penalty})})
        adapter, facts = train(config, work / f"together-{penalty:g}", work / "cache")
        note(name, evaluation.table(("both", adapter)), facts)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the JSON here (default: print it)")
    parser.add_argument("--work", type=Path, help="keep runs and caches there (default: a temporary folder)")
    parser.add_argument("--alone", type=int, default=ALONE, help="steps of a run of one subject (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="sampling steps (default: %(default)s)")
    parser.add_argument("--penalties", type=float, nargs="*", default=(), help="weights of the penalty to try too")
    parser.add_argument("--only-together", action="store_true", help="leave out the runs of one subject")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folders = draw_pictures(work)
        evaluation = Evaluation(Clip(), Studio("pocket"), folders, options.steps)
        one, other = evaluation.own.values()
        result = {
            "benchmark": "concepts",
            "command": command("benchmarks.concepts", sys.argv[1:]),
            "subjects": {"within": [likeness_of_pairs(one), likeness_of_pairs(other)], "between": clip_i(one, other)},
            "figures": runs(work, folders, evaluation, options),
            "steps of one": options.alone, "seeds": SEEDS, "machine": machine(), "versions": versions(),
        }  # fmt: skip
    text = json.dumps(result, indent=2) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
