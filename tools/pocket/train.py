"""Make the base model, stage by stage: `python -m tools.pocket.train draw|vae|clip|latents|unet|export`.

Each stage resumes what it finds in the work folder. `--warm` starts a network from the committed weights instead of
from nothing.
"""

import argparse
import os
from pathlib import Path

import torch

from tools.pocket import clip, export, pool, procedural, tokenizer, unet, vae
from tools.pocket.fit import Plan, fit, load_average

FOLDER = Path(__file__).parents[2] / "sdlora" / "pocket"
PLANS = {
    "vae": Plan(steps=3400, rate=1.2e-3, batch=8, warmup=50, averaging=0.995, decay=0.0),
    "clip": Plan(steps=720, rate=1e-3, batch=160, averaging=0.995, decay=0.1),
    "unet": Plan(steps=7000, rate=8e-4, batch=32, warmup=300, averaging=0.9985, decay=0.01),
}


def draw(args: argparse.Namespace) -> None:
    """Draw the pictures that all other stages train on and are tested with."""
    pool.fill(args.work / "pictures", args.chunks, args.workers)
    pool.fill(args.work / "procedural", max(1, args.chunks // 6), args.workers, picture=procedural.picture)
    pool.fill(args.work / "exam-pictures", 2, args.workers, pool.EXAM_OFFSET)


def train_vae(args: argparse.Namespace) -> None:
    """Train the autoencoder."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(args.folder / "vae") if args.warm else vae.build()
    model.to(args.device)
    if args.compile:
        model.encoder.compile()
        model.decoder.compile()
    plan = args.plan("vae")
    fit("vae", model, vae.VaeLoss(model, args.work, plan, args.device), plan, args.work)


def train_clip(args: argparse.Namespace) -> None:
    """Train the two towers of CLIP."""
    from transformers import CLIPModel

    words = tokenizer.load(args.work / "tokenizer")
    model = CLIPModel.from_pretrained(args.folder / "clip") if args.warm else clip.build(words)
    model.to(args.device)
    if args.compile:
        model.compile()
    plan = args.plan("clip")
    fit("clip", model, clip.ClipLoss(model, words, args.work, plan, args.device), plan, args.work)


def averaged(name: str, model: torch.nn.Module, args: argparse.Namespace) -> torch.nn.Module:
    """`model` with the averaged weights of the run `name`, as they are now."""
    step = load_average(args.work / f"{name}.pt", model)
    print(f"{name}: the average at step {step}")
    return model.eval().requires_grad_(False)


def encode(args: argparse.Namespace) -> None:
    """Run all pictures through the finished autoencoder once."""
    model = averaged("vae", vae.build(), args).to(args.device)
    if args.compile:
        model.encoder.compile()
    unet.encode_pool(model, pool.Pool(args.work / "pictures"), args.work / "latents", args.device)


def train_unet(args: argparse.Namespace) -> None:
    """Train the denoiser with the text tower as it is."""
    from diffusers import UNet2DConditionModel

    words = tokenizer.load(args.work / "tokenizer")
    text = averaged("clip", clip.build(words), args).text_model.to(args.device)
    model = UNet2DConditionModel.from_pretrained(args.folder / "unet") if args.warm else unet.build()
    model.to(args.device)
    if args.compile:
        model.compile()
    plan = args.plan("unet")
    fit("unet", model, unet.UnetLoss(model, text, words, args.work, plan, args.device), plan, args.work)


def write(args: argparse.Namespace) -> None:
    """Write the model's folder from the averages of all runs, whether they are finished or not."""
    words = tokenizer.load(args.work / "tokenizer")
    towers = averaged("clip", clip.build(words), args)
    scale = unet.scaling_factor(args.work / "latents")
    parts = averaged("unet", unet.build(), args), averaged("vae", vae.build(), args)
    export.write_pipeline(*parts, towers, words, scale, args.folder)
    export.write_clip(towers, words, args.folder / "clip")


STAGES = {
    "draw": draw,
    "vae": train_vae,
    "clip": train_clip,
    "latents": encode,
    "unet": train_unet,
    "export": write,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--work", type=Path, default=Path(__file__).parent / "work", help="where pictures and states are kept"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--chunks", type=int, default=52, help=f"how many times {pool.CHUNK} pictures to draw")
    parser.add_argument("--steps", type=int, help="instead of the plan's")
    parser.add_argument("--rate", type=float, help="instead of the plan's")
    parser.add_argument("--warm", action="store_true", help="start from the weights in --folder")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: right on GPUs, wrong gradients on some CPUs"
    )
    args = parser.parse_args()

    def plan(stage: str) -> Plan:
        from dataclasses import replace

        changed = {k: v for k, v in (("steps", args.steps), ("rate", args.rate)) if v}
        return replace(PLANS[stage], **changed)

    args.plan = plan
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
