"""Measure the quality of adapters of the bundled model: ``python -m benchmarks.quality style|subject|mix``.

* ``style``: trains ``pocket-style``, then asks for its held-out prompts. CLIP-I to pictures of the style that the world
  draws for those same prompts says how far the look moved; CLIP-T says whether the prompts are still followed, beside
  what those pictures have.
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

from PIL import Image

from benchmarks.held_out import CFG, PLACES, ROOT, SEEDS, STEPS, StyleEvaluation, SubjectEvaluation, likeness_of_pairs
from benchmarks.report import command, machine, versions
from sdlora.api.training import list_runs
from sdlora.config import TrainConfig
from sdlora.evaluation.fidelity import Clip
from sdlora.generation.contact_sheet import contact_sheet
from sdlora.generation.studio import Studio

PICTURES = ROOT / "docs" / "pictures"
"""Folder of the contact sheets that the README shows."""


def trained(preset: str, name: str, data_dir: Path, *flags: str) -> tuple[Path, float]:
    """Train by the command line; the adapter, and the seconds that the whole command took."""
    train = [sys.executable, "-m", "sdlora.cli.main", "train", str(ROOT / "presets" / f"{preset}.toml")]
    begun = time.monotonic()
    done = subprocess.run(
        [*train, "--name", name, "--data-dir", str(data_dir), *flags], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.splitlines()[-1].removeprefix("adapter: ")), time.monotonic() - begun


def style(clip: Clip, data_dir: Path, *flags: str) -> tuple[dict[str, Any], Image.Image]:
    """The figures of the style trial, and base | adapter | the world's own, a row a prompt; ``flags`` of ``train``."""
    adapter, seconds = trained("pocket-style", "style", data_dir, *flags)
    studio = Studio("pocket")
    evaluation = StyleEvaluation(clip, studio)
    studio.add_adapter("style", adapter, 0.0)
    unchanged = all(a.tobytes() == b.tobytes() for a, b in zip(evaluation.base, evaluation.pictures(), strict=True))
    studio.set_scale("style", 1.0)
    adapted = evaluation.pictures()
    found = evaluation.figures(adapted)
    figures = {
        "train_seconds": seconds,
        "adapter_bytes": adapter.stat().st_size,
        "clip_i": {"base": evaluation.base_clip_i, "adapter": found["clip_i"], "style itself": evaluation.own},
        "share_of_gap": found["share_of_gap"],
        "clip_t": {
            "base": evaluation.base_clip_t,
            "adapter": found["clip_t"],
            "style itself": evaluation.true_clip_t,
        },
        "clip_t_kept": found["clip_t_kept"],
        "scale_0_equals_base": unchanged,
    }
    rows = [
        [evaluation.base[i * SEEDS], *adapted[i * SEEDS : i * SEEDS + 3], evaluation.truth[i * SEEDS]]
        for i in range(len(evaluation.plain))
    ]
    return figures, contact_sheet(
        rows, evaluation.plain, ["base", "with the adapter", "", "", "drawn by hand"], cell=160
    )


def subject(clip: Clip, data_dir: Path) -> tuple[dict[str, Any], Image.Image]:
    """The figures of the subject trial, and with | without prior preservation, a row a prompt."""
    with_prior, seconds = trained("pocket-subject", "subject", data_dir)
    without, _ = trained("pocket-subject", "subject-no-prior", data_dir, "--prior.weight", "0")
    studio = Studio("pocket")
    evaluation = SubjectEvaluation(clip, studio)
    made = {"base": evaluation.base}
    for name, adapter in (("with prior", with_prior), ("without prior", without)):
        studio.add_adapter(name, adapter)
        made[name] = evaluation.pictures()
        studio.remove_adapter(name)
    figures: dict[str, Any] = {"train_seconds": seconds, "subject_within": likeness_of_pairs(evaluation.own)}
    figures |= {name: evaluation.figures(kinds) for name, kinds in made.items()}
    rows = [[made[name][kind][i * SEEDS] for kind in ("trigger", "class") for name in made] for i in range(len(PLACES))]
    columns = [f'"{text}", {name}' for text in ("sks cat", "cat") for name in made]
    return figures, contact_sheet(rows, list(PLACES), columns, cell=140)


def mix(clip: Clip, data_dir: Path) -> tuple[dict[str, Any], Image.Image]:
    """One prompt over both adapters' scales."""
    studio = Studio("pocket")
    for preset, name in (("pocket-style", "style"), ("pocket-subject", "subject")):
        config = TrainConfig.load(preset)
        finished = [run.adapter for run in list_runs(data_dir) if run.adapter.exists() and run.config == config]
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
    return {}, contact_sheet(rows, [f"subject {s}" for s in labels], [f"style {s}" for s in labels], cell=160)


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
