"""Measure how much of two adapters is left when they are merged, by method: ``python -m benchmarks.mixing``.

``pocket-style`` and ``pocket-subject`` are trained with each seed, merged by each way of ``WAYS``, and asked for three
kinds of images: both at once ("ohwx style, a sks cat on grass"), the style alone on other things, and the subject
alone (the last two not with ``--both-only``). *Look* is the share of the way from the base's images to true drawings by
colours, edges and spectrum, the least of the three (``tools.pocket.look_measure``); *likeness* is that of the subject's
evaluation. Both are given as the share of what the adapter has when it is used alone: 1 keeps all of it; 0 is what the
other adapter alone has on the same prompts, or the base. *Weaker* is the lesser of both shares in images of both: the
figure that decides.

Adapters and images stay in ``--work``, from which an interrupted measurement goes on.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.held_out import CFG, PLACES, ROOT, STYLE
from benchmarks.report import columns, result, rounded
from sdlora.config import TrainConfig
from sdlora.editing import merge_by, overlap
from sdlora.editing.low_rank import Cut
from sdlora.editing.merge_methods import MergeOptions
from sdlora.evaluation.fidelity import Clip, clip_i
from sdlora.events import ignore
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.writing import write_atomic
from sdlora.formats import read_adapter, write_adapter
from sdlora.generation.studio import Studio
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import train
from tools.make_sample_data import draw_truth
from tools.pocket.look_measure import LookMeasure, autoencoded
from tools.pocket.look_reader import LOOKS

RESULTS = Path(__file__).parent / "results" / "mixing.json"
FIRST_SEED, TRUE_SEEDS = 300, (900, 950)
KINDS = ("style", "subject")
OTHER_THINGS = ("a red house on grass", "a blue car in the city", "a green boat on water", "a yellow cup on snow")
"""Held-out prompts of the style."""
PROMPTS: Mapping[str, Sequence[str]] = {
    "both": [f"ohwx style, a sks cat {place}" for place in PLACES],
    "style": [f"ohwx style, {thing}" for thing in OTHER_THINGS],
    "subject": [f"a sks cat {place}" for place in PLACES],
}
PLAIN: Mapping[str, Sequence[str]] = {"both": [f"a blue cat {place}" for place in PLACES], "style": OTHER_THINGS}
"""Captions with the same contents: the look begins at the base's images of them, and ends at true drawings."""
SAME_SIZE = Cut(rank=32)
"""Ranks of the sum: two of 16."""


class Way(NamedTuple):
    """A way to merge, in order of the adapters, at equal scales."""

    options: MergeOptions = MergeOptions()
    cut: Cut | None = None
    scale: float = 1.0
    order: Sequence[str] = KINDS


WAYS: Mapping[str, Way] = {
    "sum": Way(),
    "sum, scales 0.7": Way(scale=0.7),
    "ties, density 0.2": Way(MergeOptions("ties", density=0.2), SAME_SIZE),
    "ties, density 0.5": Way(MergeOptions("ties", density=0.5), SAME_SIZE),
    "ties, density 0.5, full rank": Way(MergeOptions("ties", density=0.5), Cut(energy=1.0)),
    "dare, density 0.5": Way(MergeOptions("dare", density=0.5), SAME_SIZE),
    "dare, density 0.5, full rank": Way(MergeOptions("dare", density=0.5), Cut(energy=1.0)),
    "directions": Way(MergeOptions("directions")),
    "orthogonal, style first": Way(MergeOptions("orthogonal", protect=0.5)),
    "orthogonal, subject first": Way(MergeOptions("orthogonal", protect=0.5), order=KINDS[::-1]),
    "orthogonal 0.9, style first": Way(MergeOptions("orthogonal", protect=0.9)),
    "select": Way(MergeOptions("select")),
}


class Mixing:
    """Adapters, images and their figures, all kept in ``work``."""

    def __init__(self, work: Path, steps: int, per_prompt: int, train_steps: int | None = None):
        self.work, self.steps, self.per_prompt, self.train_steps = work, steps, per_prompt, train_steps
        self.clip, self.studio = Clip(), Studio("pocket")
        subjects = sorted((ROOT / "sample_data" / "subject").glob("*.png"))
        self.own = self.clip.subjects([Image.open(path) for path in subjects])

    @cached_property
    def measure(self) -> LookMeasure:
        return LookMeasure(LOOKS[STYLE], self._through)

    @cached_property
    def _through(self) -> Callable[[Sequence[Image.Image]], list[Image.Image]]:
        return autoencoded(AutoencoderKL.from_pretrained(BUNDLED["pocket"] / "vae").eval())

    @cached_property
    def ends(self) -> dict[str, tuple[list[Image.Image], list[Image.Image]]]:
        """The base's images and true drawings of ``PLAIN``."""
        return {
            kind: (
                self.images("base", kind, plain, []),
                self._through([image for seed in TRUE_SEEDS for image in draw_truth(STYLE, [*plain], seed, 128)]),
            )
            for kind, plain in PLAIN.items()
        }

    def adapter(self, kind: str, seed: int) -> Path:
        """Train the preset, unless that is done."""
        found = self.work / f"{kind}-{seed}.safetensors"
        if not found.exists():
            folder = self.work / f"run-{kind}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            output = RunPaths(folder)
            for path in (output.samples, output.checkpoints):
                path.mkdir(parents=True)
            changes: dict[str, Any] = {"train.seed": seed, "sample.every": 0, "checkpoint.every": 0}
            changes |= {"train.steps": self.train_steps} if self.train_steps else {}
            config = TrainConfig.load(f"pocket-{kind}", changes)
            train(TrainJob(**dict(config), output=output, cache=self.work / "cache", on_event=ignore))
            shutil.copy(output.adapter, found)
        return found

    def merged(self, name: str, pair: Mapping[str, int]) -> Path:
        """Merge the adapters of ``pair`` (kind, seed), unless that is done."""
        way, label = WAYS[name], "-".join(f"{kind}{seed}" for kind, seed in pair.items())
        found = self.work / f"{slug(name)}-{label}.safetensors"
        if not found.exists():
            parts = [(kind, read_adapter(self.adapter(kind, pair[kind])), way.scale) for kind in way.order]
            write_adapter(merge_by(way.options, parts, way.cut).state, found)
        return found

    def images(self, name: str, kind: str, prompts: Sequence[str], adapters: Sequence[Path]) -> list[Image.Image]:
        """Generate images of ``prompts`` with ``adapters`` at scale 1, unless that is done."""
        folder = self.work / "images" / f"{slug(name)}-{kind}"
        if not folder.exists():
            for number, path in enumerate(adapters):
                self.studio.add_adapter(str(number), path)
            made = self.studio.generate(
                list(prompts), seed=FIRST_SEED, count=self.per_prompt, steps=self.steps, cfg=CFG
            )
            for number in range(len(adapters)):
                self.studio.remove_adapter(str(number))
            beside = folder.with_suffix(".partial")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            for number, image in enumerate(made):
                image.save(beside / f"{number:02d}.png")
            beside.rename(folder)
        return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]

    def raw(self, name: str, adapters: Sequence[Path], kinds: Sequence[str]) -> dict[str, float]:
        """Look and likeness of images of some ``kinds``, of those that have one."""
        found: dict[str, float] = {}
        for kind in kinds:
            made = self.images(name, kind, PROMPTS[kind], adapters)
            if kind in PLAIN:
                found[f"look of {kind}"] = self.measure.shares(made, *self.ends[kind])["look"]
            if kind != "style":
                found[f"likeness of {kind}"] = clip_i(self.clip.subjects(made), self.own)
        return found

    def kept(self, name: str, pair: Mapping[str, int], kinds: Sequence[str]) -> dict[str, float]:
        """Return the shares that one way keeps of both adapters of ``pair``."""
        label = "-".join(str(seed) for seed in pair.values())
        made = self.raw(f"{name} {label}", [self.merged(name, pair)], kinds)
        alone = {
            kind: self.raw(
                f"{kind} {seed}", [self.adapter(kind, seed)], [each for each in kinds if each in ("both", kind)]
            )
            for kind, seed in pair.items()
        }

        def share(what: str, none: Mapping[str, float], kind: str) -> float:
            return (made[what] - none[what]) / (alone[kind][what] - none[what])

        found = {
            "style in both": share("look of both", alone["subject"], "style"),
            "subject in both": share("likeness of both", alone["style"], "subject"),
        }
        found["weaker"] = min(found.values())
        if len(kinds) > 1:
            base = self.raw("no adapter", [], ("style", "subject"))
            found["style alone"] = share("look of style", base, "style")
            found["subject alone"] = share("likeness of subject", base, "subject")
        return found


def slug(name: str) -> str:
    """Return ``name`` as part of a file name."""
    return name.replace(", ", "-").replace(" ", "-")


def overlaps(mixing: Mixing, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the overlap of pairs of adapters: style and subject of one seed and of two, and one kind of two seeds."""
    pairs = [(("style", a), ("subject", b)) for a, b in product(seeds, seeds)]
    pairs += [((kind, a), (kind, b)) for kind in KINDS for a in seeds for b in seeds if a <= b]
    found: dict[str, dict[str, float]] = {}
    for one, other in pairs:
        states = [(f"{kind} {seed}", read_adapter(mixing.adapter(kind, seed))) for kind, seed in (one, other)]
        whole = overlap(*states).whole
        figures = {"cosine": whole.cosine, "inputs": whole.inputs, "outputs": whole.outputs}
        found[f"{states[0][0]}, {states[1][0]}"] = {name: rounded(value, 3) for name, value in figures.items()}
    return found


def summary(pairs: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean, least and largest of each figure over the pairs of adapters."""
    names = next(iter(pairs.values()))
    values = {name: [figures[name] for figures in pairs.values()] for name in names}
    return {
        name: {"mean": rounded(mean(each), 3), "least": rounded(min(each), 3), "largest": rounded(max(each), 3)}
        for name, each in values.items()
    }  # fmt: skip


def verdict(ways: Mapping[str, Any]) -> dict[str, Any]:
    """Return each way's gain over the sum in ``weaker``, pair by pair, and whether it is beyond the spread.

    Beyond it is a gain in every pair whose mean is larger than the range of the sum over the pairs.
    """
    base = ways["sum"]["pairs"]
    values = [figures["weaker"] for figures in base.values()]
    found = {}
    for name, way in ways.items():
        gains = [way["pairs"][pair]["weaker"] - base[pair]["weaker"] for pair in base if pair in way["pairs"]]
        beyond = min(gains) > 0 and mean(gains) > max(values) - min(values)
        found[name] = {"gains": [rounded(gain, 3) for gain in gains], "mean": rounded(mean(gains), 3), "beyond": beyond}
    return found


def table(found: Mapping[str, Any]) -> list[str]:
    """Return the means as lines of text."""
    names = ["weaker", "style in both", "subject in both", "style alone", "subject alone"]
    rows = [
        [way, *(f"{figures['summary'][name]['mean']:.2f}" if name in figures["summary"] else "-" for name in names)]
        for way, figures in found.items()
    ]
    return columns([["way", *names], *rows])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixing", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of adapters and images, which stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--crossed", action="store_true", help="also the sum of adapters of two seeds")
    parser.add_argument("--both-only", action="store_true", help="ask for images of both alone")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps")
    parser.add_argument("--per-prompt", type=int, default=2, help="images of each prompt")
    parser.add_argument("--train-steps", type=int, help="steps of each training (default: the preset's)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    options.work.mkdir(parents=True, exist_ok=True)
    mixing = Mixing(options.work, options.steps, options.per_prompt, options.train_steps)
    kinds = ["both"] if options.both_only else list(PROMPTS)
    equal = [(seed, seed) for seed in options.seeds]
    found = {name: measure(mixing, name, equal, kinds) for name in options.ways}
    if options.crossed:
        crossed = [(seed, options.seeds[i - 1]) for i, seed in enumerate(options.seeds)]
        found["sum, of two seeds"] = measure(mixing, "sum", crossed, kinds)
    config = {
        "steps": options.steps, "per_prompt": options.per_prompt, "cfg": CFG, "seeds": options.seeds,
        "train_steps": options.train_steps, "first_seed": FIRST_SEED,
    }  # fmt: skip
    more = {"gain_over_sum": verdict({name: found[name] for name in options.ways})} if "sum" in found else {}
    report = result("mixing", words, config, ways=found, overlap=overlaps(mixing, options.seeds), **more)
    write_atomic(options.output, json.dumps(report, indent=1) + "\n")
    print("\n".join(table(found)))
    return 0


def measure(mixing: Mixing, name: str, pairs: Sequence[tuple[int, int]], kinds: Sequence[str]) -> dict[str, Any]:
    """Return the figures of one way for each pair of seeds (style, subject), and over them."""
    figures = {}
    for pair in pairs:
        shares = mixing.kept(name, dict(zip(KINDS, pair, strict=True)), kinds)
        figures[f"{pair[0]} and {pair[1]}"] = {what: rounded(value, 3) for what, value in shares.items()}
        print(name, pair, json.dumps(figures[f"{pair[0]} and {pair[1]}"]), file=sys.stderr, flush=True)
    return {"pairs": figures, "summary": summary(figures)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
