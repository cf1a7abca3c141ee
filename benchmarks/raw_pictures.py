"""Measure what the page makes of ten pictures of a look as people have them: ``python -m benchmarks.raw_pictures``.

Ten pictures, with captions or without, go into a project, and are trained on with the page's own settings: those that
come without are captioned first, as the page does. Prompts that are none of theirs are then asked for at the guidance
of the preset. *Look* is the share of the way from the base's images to true drawings by colours, edges and spectrum,
the least of the three (``tools.pocket.look_measure``); *read*, what a network that knows this very look reads in them,
beside what it reads in true drawings (``tools.pocket.look_reader``).

Outcomes are kept in ``--work``, from which an interrupted measurement goes on. The looks *knitted*, *embroidered* and
*cut paper* serve for exams: nothing is tuned to them.
"""

import argparse
import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.report import columns, result, spread
from sdlora.api.captioning import caption_folder
from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.generation.contact_sheet import contact_sheet
from sdlora.generation.studio import Studio
from sdlora.ui.build_config import configure, preview_prompts, suggested_words
from tools.make_sample_data import HELD_OUT_CONTENTS, STYLE_CONTENTS
from tools.pocket import world
from tools.pocket.captions import caption
from tools.pocket.look_measure import LookMeasure, autoencoded
from tools.pocket.look_reader import LOOKS, READ, LookReader
from tools.pocket.train import FOLDER

SHOWN = ("stained glass", "neon", "knitted", "embroidered", "cut paper")
CAPTIONS = ("none", "true", "empty")
"""None when they are dropped, true ones, or none that the page may write either."""
PER_PROMPT = 2
FIRST_SEED = 100
TRUE_SEEDS = (900, 950)
"""Seeds of the true drawings, one for each image of a prompt."""
SIZE = 128


class LookTrial:
    """All that is the same for every run of one look."""

    def __init__(self, look: str, work: Path, studio: Studio, model: AutoencoderKL):
        self.look, self.work, self.studio, self.model = look, work, studio, model
        through = autoencoded(model)
        self.measure = LookMeasure(LOOKS[look], through)
        self.true = through([self._drawn(c, s + i) for i, c in enumerate(HELD_OUT_CONTENTS) for s in TRUE_SEEDS])

    def _drawn(self, content: world.Combination, seed: int, size: int = SIZE) -> Image.Image:
        return LOOKS[self.look](world.scene(*content, seed=seed), np.random.default_rng(seed), size)

    @cached_property
    def reader(self) -> LookReader:
        return LookReader(self.look, self.work, self.model)

    def pictures(self, captions: str) -> list[Path]:
        """Draw the ten pictures, and write their captions where they have some."""
        folder = self.work / "pictures" / f"{self.look}-{captions}".replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(STYLE_CONTENTS):
            self._drawn(content, 80 + number, 2 * SIZE).save(folder / f"{number:02d}.png")
            if captions == "true":
                (folder / f"{number:02d}.txt").write_text(caption(*content), encoding="utf-8")
        return sorted(folder.iterdir())

    def config(self, captions: str, name: str, seed: int, data_dir: Path) -> TrainConfig:
        """Return what the page would train: everything as it offers it, but for the seed."""
        words = suggested_words("pocket", "style")
        project = Project(data_dir, name)
        if not project.images():
            project.add(self.pictures(captions))
            project.set_info(words)
            if captions == "none":
                caption_folder(project.folder, data_dir=data_dir)
        prompts = preview_prompts("pocket", words)
        return configure(project, words, "pocket", "Balanced", prompts, {"train.seed": seed})

    def images(self, words: ProjectInfo, cfg: float, steps: int) -> list[Image.Image]:
        """Ask for the held-out prompts, with whatever adapter the studio has."""
        prompts = [f"{words.trigger}, {caption(*content)}" for content in HELD_OUT_CONTENTS]
        return self.studio.generate(prompts, seed=FIRST_SEED, count=PER_PROMPT, steps=steps, cfg=cfg)

    def outcome(self, captions: str, seed: int, read: bool) -> dict[str, Any]:
        """Train once, and measure."""
        name, data_dir = f"{self.look}-{captions}-{seed}".replace(" ", "-"), self.work / "data"
        config = self.config(captions, name, seed, data_dir)
        run = prepare_run(config, None, data_dir)
        subprocess.run([sys.executable, "-m", "sdlora.jobs.training_worker", str(run.folder)], check=True)
        words, cfg, steps = suggested_words("pocket", "style"), config.sample.cfg or 7.0, config.sample.steps
        base = self.images(words, cfg, steps)
        self.studio.add_adapter("asked", run.adapter)
        made = self.images(words, cfg, steps)
        self.studio.remove_adapter("asked")
        self._sheet(base, made).save(self.work / f"{name}.png")
        found: dict[str, Any] = {"look": self.look, "captions": captions, "seed": seed, "cfg": cfg}
        found["shares"] = {kind: round(share, 3) for kind, share in self.measure.shares(made, base, self.true).items()}
        if read:
            contents = [content for content in HELD_OUT_CONTENTS for _ in range(PER_PROMPT)]
            kinds = (("adapter", made), ("true drawings", self.true))
            found["read"] = {kind: self.reader.shares(images, contents) for kind, images in kinds}
            found["read"]["reader on unseen drawings"] = self.reader.accuracy
        return found

    def _sheet(self, base: list[Image.Image], made: list[Image.Image]) -> Image.Image:
        rows = [[base[i], made[i], made[i + 1], self.true[i]] for i in range(0, len(made), PER_PROMPT)]
        labels = [caption(*content) for content in HELD_OUT_CONTENTS]
        return contact_sheet(rows, labels, ["base", "with the adapter", "", "true drawing"], cell=SIZE)


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the outcomes of all runs that were asked for, those in the work folder as they are."""
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "outcomes.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(one["look"], one["captions"], one["seed"]) for one in found if not options.read or "read" in one}
    studio, model = Studio("pocket"), AutoencoderKL.from_pretrained(FOLDER / "vae").eval()
    for look in options.looks:
        missing = [(c, s) for c in options.captions for s in range(options.seeds) if (look, c, s) not in done]
        trial = LookTrial(look, options.work, studio, model) if missing else None
        for captions, seed in missing:
            assert trial is not None
            found.append(trial.outcome(captions, seed, options.read))
            with open(kept, "a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    asked = {(look, c, s) for look in options.looks for c in options.captions for s in range(options.seeds)}
    return [one for one in found if (one["look"], one["captions"], one["seed"]) in asked]


def summarized(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each look and kind of captions, over seeds."""
    rows = []
    for look, captions in dict.fromkeys((one["look"], one["captions"]) for one in outcomes):
        own = [one for one in outcomes if (one["look"], one["captions"]) == (look, captions)]
        row: dict[str, Any] = {"look": look, "captions": captions, "runs": len(own)}
        row["shares"] = {kind: spread([one["shares"][kind] for one in own]) for kind in own[0]["shares"]}
        if all("read" in one for one in own):
            row["read"] = {
                who: {aspect: round(mean(one["read"][who][aspect] for one in own), 3) for aspect in READ}
                for who in own[0]["read"]
            }
        rows.append(row)
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", nargs="+", choices=[*LOOKS], default=SHOWN)
    parser.add_argument("--captions", nargs="+", choices=CAPTIONS, default=CAPTIONS[:2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder of drawings, runs and outcomes")
    parser.add_argument("--read", action="store_true", help="train a reader for each look too: ten minutes each")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    options = parser.parse_args(words)
    rows = summarized(measured(options))
    found = result("raw_pictures", words if words is not None else sys.argv[1:], {"seeds": options.seeds}, rows=rows)
    table = [("look", "captions", *rows[0]["shares"])] if rows else []
    table += [(row["look"], row["captions"], *(each["median"] for each in row["shares"].values())) for row in rows]
    print(json.dumps(found) if options.json else "\n".join(columns(table)))


if __name__ == "__main__":
    main()
