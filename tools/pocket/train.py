"""Make the base model, stage by stage: `python -m tools.pocket.train draw|vae|decoder|...|export`.

Each stage resumes what it finds in the work folder; `--warm` starts a network from the committed weights instead of
from nothing. A new autoencoder makes new latents: delete `latents/` first.

torch.compile is left out on purpose: on CPUs, with bfloat16, it gave these networks wrong gradients (torch 2.13).
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from tools.pocket import clip, decoder, export, looks, pool, procedural, tokenizer, tower, unet, vae
from tools.pocket.fit import Plan, fit, load_average

CLASSES = {"vae": AutoencoderKL, "clip": CLIPModel, "unet": UNet2DConditionModel}
FOLDER = Path(__file__).parents[2] / "sdlora" / "pocket"
PLANS = {
    "vae": Plan(steps=5000, rate=1.2e-3, batch=8, warmup=50, averaging=0.995, decay=0.0),
    "decoder": Plan(steps=8000, rate=5e-4, batch=8, warmup=100, averaging=0.998, decay=0.0),
    "clip": Plan(steps=720, rate=1e-3, batch=160, averaging=0.995, decay=0.1),
    "tower": Plan(steps=4000, rate=6e-4, batch=128, warmup=200, averaging=0.998, decay=0.1),
    "unet": Plan(steps=7000, rate=8e-4, batch=32, warmup=300, averaging=0.9985, decay=0.01),
}


def draw(args: argparse.Namespace) -> None:
    """Draw the pictures that all other stages train on and are tested with."""
    pool.fill(args.work / "pictures", args.chunks, args.workers)
    pool.fill(args.work / "procedural", max(1, args.chunks // 6), args.workers, picture=procedural.picture)
    pool.fill(args.work / "looks", args.chunks, args.workers, looks.OFFSET, looks.picture)
    pool.fill(args.work / "exam-pictures", 2, args.workers, pool.EXAM_OFFSET)


def words(args: argparse.Namespace) -> CLIPTokenizer:
    """The run's tokenizer; with --warm, or where a later stage runs alone, the committed one."""
    own = args.work / "tokenizer"
    committed = args.folder / "tokenizer"
    return tokenizer.load(committed if committed.exists() and (args.warm or not own.exists()) else own)


def _new(name: str, args: argparse.Namespace) -> torch.nn.Module:
    return {"vae": vae.build, "unet": unet.build, "clip": lambda: clip.build(words(args))}[name]()


def started(name: str, args: argparse.Namespace) -> torch.nn.Module:
    """The network to be trained: new, or with --warm the committed one."""
    model = CLASSES[name].from_pretrained(args.folder / name) if args.warm else _new(name, args)
    return model.to(args.device)


def trained(name: str, args: argparse.Namespace) -> torch.nn.Module:
    """The average of the run in the work folder as it is now; where there is no such run, the committed network."""
    state = args.work / f"{name}.pt"
    if state.exists():
        model = _new(name, args)
        print(f"{name}: the average at step {load_average(state, model)}")
    else:
        model = CLASSES[name].from_pretrained(args.folder / name)
        print(f"{name}: as committed")
    return model.eval().requires_grad_(False)


def trained_tower(args: argparse.Namespace) -> CLIPModel:
    """CLIP with the image tower of the run in the work folder; where there is no such run, as committed."""
    state = args.work / "tower.pt"
    if not state.exists():
        return CLIPModel.from_pretrained(args.folder / "clip")
    model = tower.begun(trained("clip", args))
    print(f"tower: the average at step {load_average(state, model)}")
    return model.eval().requires_grad_(False)


def trained_vae(args: argparse.Namespace) -> AutoencoderKL:
    """The autoencoder, with the decoder of the run in the work folder where there is one."""
    model, state = trained("vae", args), args.work / "decoder.pt"
    if state.exists():
        print(
            f"decoder: the average at step {load_average(state, decoder.DecoderAndCritic(model.requires_grad_(True)))}"
        )
    return model.eval().requires_grad_(False)


def train_vae(args: argparse.Namespace) -> None:
    """Train the autoencoder."""
    model, plan = started("vae", args), args.plan("vae")
    fit("vae", model, vae.VaeLoss(model, args.work, plan, args.device), plan, args.work)


def train_decoder(args: argparse.Namespace) -> None:
    """Train the autoencoder's decoder alone, from the one of `vae`."""
    both = decoder.DecoderAndCritic(trained("vae", args).requires_grad_(True)).to(args.device)
    plan = args.plan("decoder")
    fit("decoder", both, decoder.DecoderLoss(both, args.work, plan, args.device), plan, args.work)


def train_clip(args: argparse.Namespace) -> None:
    """Train the two towers of CLIP."""
    model, plan = started("clip", args), args.plan("clip")
    fit("clip", model, clip.ClipLoss(model, words(args), args.work, plan, args.device), plan, args.work)


def soften(args: argparse.Namespace) -> None:
    """Run some of the pictures through the finished autoencoder, for the tower."""
    model = trained_vae(args).to(args.device)
    for name, offset, chunks in (("looks", looks.OFFSET, args.chunks // 4), ("pictures", 0, args.chunks // 8)):
        tower.soften(model, pool.Pool(args.work / name, offset), args.work / f"soft-{name}", chunks, args.device)


def _teacher(args: argparse.Namespace) -> CLIPModel | None:
    return CLIPModel.from_pretrained(args.teacher).to(args.device).eval() if args.teacher else None


def train_tower(args: argparse.Namespace) -> None:
    """Train CLIP's image tower alone, from the towers of `clip`."""
    model = tower.begun(trained("clip", args)).to(args.device)
    plan, teacher = args.plan("tower"), _teacher(args)
    fit("tower", model, tower.TowerLoss(model, words(args), args.work, plan, args.device, teacher), plan, args.work)


def encode(args: argparse.Namespace) -> None:
    """Run all pictures through the finished autoencoder once."""
    pictures = pool.Pool(args.work / "pictures")
    unet.encode_pool(trained("vae", args).to(args.device), pictures, args.work / "latents", args.device)


def train_unet(args: argparse.Namespace) -> None:
    """Train the denoiser with the text tower as it is."""
    text = trained("clip", args).text_model.to(args.device)
    model, plan = started("unet", args), args.plan("unet")
    fit("unet", model, unet.UnetLoss(model, text, words(args), args.work, plan, args.device), plan, args.work)


def write(args: argparse.Namespace) -> None:
    """Write the model's folder from the averages of all runs, whether they are finished or not."""
    autoencoder, tokens, latents = trained_vae(args), words(args), args.work / "latents"
    scale = unet.scaling_factor(latents) if latents.exists() else autoencoder.config.scaling_factor
    export.write_pipeline(trained("unet", args), autoencoder, trained("clip", args), tokens, scale, args.folder)
    export.write_clip(trained_tower(args), tokens, args.folder / "clip")


STAGES = {
    "draw": draw,
    "vae": train_vae,
    "decoder": train_decoder,
    "clip": train_clip,
    "soften": soften,
    "tower": train_tower,
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
    parser.add_argument("--teacher", type=Path, help="a CLIP whose middle layer the image tower keeps to")
    parser.add_argument("--warm", action="store_true", help="start from the weights in --folder")
    args = parser.parse_args()

    def plan(stage: str) -> Plan:
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
