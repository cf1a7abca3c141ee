"""What training on the bundled model reaches, measured: ``python -m benchmarks.quality style|subject|mix``.

* ``style``: trains ``pocket-style``, then asks for its held-out prompts. CLIP-I to pictures of the style that the world
  draws for those same prompts says how far the look moved; CLIP-T says whether the prompts are still followed.
* ``subject``: trains ``pocket-subject`` with and without prior preservation. Likeness to the subject's own pictures,
  with the trigger and without it, says what was learnt and what spilled over into the class.
* ``mix``: both adapters in one picture, over both scales.

Each writes a JSON file and a sheet, and trains through the command line, as a user would.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.report import command, machine, versions
from sdlora.config import TrainConfig
from sdlora.evaluation.fidelity import Clip, clip_i, clip_t
from sdlora.generation.grid import sheet
from sdlora.generation.studio import Studio
from sdlora.service import runs_in
from tools.make_sample_data import draw_truth

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
"""Where the sheets go: the README shows them."""
SEEDS = 4
STEPS, CFG = 25, 5.0
STYLE = "stained glass"
PLACES = ("on grass", "on sand", "on snow", "in the city")


def trained(preset: str, name: str, data_dir: Path, *flags: str) -> tuple[Path, float]:
    """Train by the command line; the adapter, and the seconds that the whole command took."""
    train = [sys.executable, "-m", "sdlora.cli", "train", str(ROOT / "presets" / f"{preset}.toml")]
    begun = time.monotonic()
    done = subprocess.run(
        [*train, "--name", name, "--data-dir", str(data_dir), *flags], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.splitlines()[-1].removeprefix("adapter: ")), time.monotonic() - begun


def pictures(studio: Studio, prompts: list[str]) -> list[Image.Image]:
    """``SEEDS`` pictures of each prompt."""
    return studio.generate(prompts, seed=100, count=SEEDS, steps=STEPS, cfg=CFG)


def style(clip: Clip, data_dir: Path, *flags: str) -> tuple[dict[str, Any], Image.Image]:
    """The figures of the style trial, and base | adapter | the world's own, a row a prompt; ``flags`` of ``train``."""
    adapter, seconds = trained("pocket-style", "style", data_dir, *flags)
    config = TrainConfig.load("pocket-style")
    prompts = list(config.sample.prompts)
    plain = [prompt.removeprefix(f"{config.data.trigger}, ") for prompt in prompts]
    truth = [draw_truth(STYLE, plain, seed=seed) for seed in range(900, 900 + 50 * SEEDS, 50)]
    truth_by_prompt = [picture for column in zip(*truth, strict=True) for picture in column]
    studio = Studio("pocket")
    base = pictures(studio, prompts)
    studio.add_adapter("style", adapter, 0.0)
    unchanged = all(a.tobytes() == b.tobytes() for a, b in zip(base, pictures(studio, prompts), strict=True))
    studio.set_scale("style", 1.0)
    adapted = pictures(studio, prompts)
    goal, texts = clip.images(truth_by_prompt), clip.texts([text for text in plain for _ in range(SEEDS)])
    features = {"base": clip.images(base), "adapter": clip.images(adapted)}
    own = _own_likeness(goal)
    look = {name: clip_i(found, goal) for name, found in features.items()}
    said = {name: clip_t(found, texts) for name, found in features.items()}
    figures = {
        "train_seconds": seconds,
        "adapter_bytes": adapter.stat().st_size,
        "clip_i": {**look, "style itself": own},
        "share_of_gap": (look["adapter"] - look["base"]) / (own - look["base"]),
        "clip_t": said,
        "clip_t_kept": said["adapter"] / said["base"],
        "scale_0_equals_base": unchanged,
    }
    rows = [
        [base[i * SEEDS], *adapted[i * SEEDS : i * SEEDS + 3], truth_by_prompt[i * SEEDS]] for i in range(len(plain))
    ]
    return figures, sheet(rows, plain, ["base", "with the adapter", "", "", "drawn by hand"], cell=160)


def _own_likeness(features: torch.Tensor) -> float:
    """Mean cosine over pairs of different pictures of one set, from their features (N, D), unit vectors; -1 to 1."""
    count = len(features)
    return ((features @ features.T).sum().item() - count) / (count * (count - 1))


def subject(clip: Clip, data_dir: Path) -> tuple[dict[str, Any], Image.Image]:
    """The figures of the subject trial, and with | without prior preservation, a row a prompt."""
    with_prior, seconds = trained("pocket-subject", "subject", data_dir)
    without, _ = trained("pocket-subject", "subject-no-prior", data_dir, "--prior.weight", "0")
    own = clip.subjects([Image.open(path) for path in sorted((ROOT / "sample_data" / "subject").glob("*.png"))])
    prompts = {
        "trigger": [f"a sks cat {place}" for place in PLACES],
        "class": [f"a cat {place}" for place in PLACES],
    }
    studio = Studio("pocket")
    made = {"base": {kind: pictures(studio, texts) for kind, texts in prompts.items()}}
    for name, adapter in (("with prior", with_prior), ("without prior", without)):
        studio.add_adapter(name, adapter)
        made[name] = {kind: pictures(studio, texts) for kind, texts in prompts.items()}
        studio.remove_adapter(name)
    figures: dict[str, Any] = {"train_seconds": seconds, "subject_within": _own_likeness(own)}
    ordinary = clip.subjects(made["base"]["class"])
    for name, kinds in made.items():
        figures[name] = {
            "likeness_with_trigger": clip_i(clip.subjects(kinds["trigger"]), own),
            "likeness_of_the_class": clip_i(clip.subjects(kinds["class"]), own),
            "class_to_base": clip_i(clip.subjects(kinds["class"]), ordinary),
        }
    rows = [[made[name][kind][i * SEEDS] for kind in ("trigger", "class") for name in made] for i in range(len(PLACES))]
    columns = [f'"{text}", {name}' for text in ("sks cat", "cat") for name in made]
    return figures, sheet(rows, list(PLACES), columns, cell=140)


def mix(clip: Clip, data_dir: Path) -> tuple[dict[str, Any], Image.Image]:
    """One prompt over both adapters' scales."""
    studio = Studio("pocket")
    for preset, name in (("pocket-style", "style"), ("pocket-subject", "subject")):
        config = TrainConfig.load(preset)
        finished = [run.adapter for run in runs_in(data_dir) if run.adapter.exists() and run.config == config]
        studio.add_adapter(name, finished[0] if finished else trained(preset, name, data_dir)[0])
    scales = (0.0, 0.5, 0.8, 1.0)
    rows = []
    for subject_scale in scales:
        studio.set_scale("subject", subject_scale)
        row = []
        for style_scale in scales:
            studio.set_scale("style", style_scale)
            row += studio.generate("ohwx style, a sks cat on grass", seed=101, steps=STEPS, cfg=CFG)
        rows.append(row)
    labels = [f"{scale:g}" for scale in scales]
    return {}, sheet(rows, [f"subject {s}" for s in labels], [f"style {s}" for s in labels], cell=160)


TRIALS = {"style": style, "subject": subject, "mix": mix}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("--data-dir", type=Path, help="keep the runs there (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures, picture = TRIALS[arguments.trial](Clip(), arguments.data_dir or Path(temporary))
    arguments.output.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    picture.save(PICTURES / f"{arguments.trial}.jpg", quality=90)
    result = {
        "trial": arguments.trial,
        **figures,
        "seeds": SEEDS,
        "steps": STEPS,
        "cfg": CFG,
        "machine": machine(),
        "versions": versions(),
    }
    result["command"] = command("benchmarks.quality", sys.argv[1:])
    (arguments.output / f"quality-{arguments.trial}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
