"""The base model's exam: does the picture show what the prompt says?

    python -m tools.pocket.exam        300 seeded prompts, half of combinations that training never saw

An independent classifier (tools/pocket/classifier.py) reads object, colour, place and style back. Prints the figures
and writes exam.json and samples.png beside the work folder's other files.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sdlora.generation.contact_sheet import contact_sheet
from tools.pocket import classifier, vae, world
from tools.pocket.captions import caption
from tools.pocket.train import FOLDER

Label = tuple[str, str, str, str]
RIGHT = 0.98
COLUMNS = 8
"""Columns of the sheet."""


def questions(count: int, seed: int) -> list[Label]:
    """(object, colour, place, style): first the seen combinations, then as many held-out ones."""
    rng = np.random.default_rng([5, seed])
    drawn = []
    for kept_out in (False, True):
        choices = world.combinations(kept_out)
        drawn += [(*choices[rng.integers(len(choices))], str(rng.choice(world.STYLES))) for _ in range(count // 2)]
    return drawn


def load_pipeline(folder: Path, device: torch.device):
    """The folder as anyone would load it, with a sampler that needs few steps."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline, prompts: list[str], steps: int, guidance: float, seed: int, batch: int = 50
) -> list[Image.Image]:
    """One 128 px picture a prompt; picture i starts from noise of seed + i."""
    pictures = []
    for first in tqdm(range(0, len(prompts), batch), desc="generating", unit="batch"):
        part = prompts[first : first + batch]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        pictures += pipeline(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return pictures


def examine(pictures: list[Image.Image], asked: list[Label], model: classifier.Classifier) -> dict:
    """Shares read right over all, over seen and over held-out combinations."""
    read = classifier.read(model, vae.pixels(np.stack([np.asarray(picture) for picture in pictures])))
    half = len(asked) // 2
    return {
        "all": classifier.accuracy(read, asked),
        "seen": classifier.accuracy(read[:half], asked[:half]),
        "held-out": classifier.accuracy(read[half:], asked[half:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    eye, eye_accuracy = classifier.trained(args.work)
    if min(eye_accuracy.values()) < RIGHT:
        raise SystemExit(f"the classifier must be {RIGHT:.0%} right on held-out drawings to examine: {eye_accuracy}")
    asked = questions(args.count, args.seed)
    pictures = generate(
        load_pipeline(args.folder, args.device), [caption(*q) for q in asked], args.steps, args.guidance, args.seed
    )
    result = {
        "prompts": len(asked),
        "steps": args.steps,
        "guidance": args.guidance,
        "seed": args.seed,
        "classifier on held-out drawings": eye_accuracy,
        **examine(pictures, asked, eye),
    }
    (args.work / "exam.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    every = max(1, len(pictures) // 40)
    shown = pictures[::every][:40]
    contact_sheet([shown[i : i + COLUMNS] for i in range(0, len(shown), COLUMNS)], gap=4).save(
        args.work / "samples.png"
    )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
