"""Memory and time to open a full-size base: ``python -m benchmarks.load --family sdxl --dtype bf16 --work DIR --json``.

The base has its family's true architecture (the bundled configs) and random weights, stored in float16. It is opened in
a process of its own: ``--way parts`` opens every component, ``--way denoiser`` what a run with filled caches opens, and
``--way whole`` does as version 0.1.0 did, with all in float32 first, then in the precision of use. *Anonymous* memory
(RssAnon) is what the process cannot give back; pages of mapped files, which the system can drop at any time, are not in
it.
"""

import argparse
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import byte_tokenizer
from benchmarks.plot import Bar, bars
from benchmarks.report import add_options, columns, result, rounded, tell
from sdlora.families.meta_model import build_meta_family
from sdlora.families.settings import Model
from sdlora.families.single_file import CONFIGS
from sdlora.formats.storage import DTYPES

WAYS = ("whole", "parts", "denoiser")
POLL_SECONDS = 0.02
CHUNK = 1 << 24
"""Random numbers that are written again and again: files of gigabytes in seconds."""
WEIGHT_FILES = {"text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}


def write_base(family: str, folder: Path) -> Path:
    """Write a base of ``family``'s true size in float16, tensor by tensor, and return its folder."""
    if (folder / "model_index.json").is_file():
        return folder
    for config in CONFIGS.joinpath(family).rglob("*.json"):
        target = folder / config.relative_to(CONFIGS / family)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name != "model_index.json":
            target.write_bytes(config.read_bytes())
    for tokenizer in (path.name for path in (CONFIGS / family).glob("tokenizer*")):
        byte_tokenizer().save_pretrained(folder / tokenizer)
    whole = build_meta_family(Model(base=str(_with_index(family, folder))), torch.float16)
    for part, module in {**whole.models, "vae": whole.vae}.items():
        _write_weights(module, folder / part / WEIGHT_FILES.get(part, "diffusion_pytorch_model.safetensors"))
    return folder


def _with_index(family: str, folder: Path) -> Path:
    (folder / "model_index.json").write_bytes((CONFIGS / family / "model_index.json").read_bytes())
    return folder


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    """Write ``module``'s tensors as small random float16 numbers."""
    noise = (np.random.default_rng(0).standard_normal(CHUNK, dtype=np.float32) * 0.02).astype(np.float16)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in module.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in module.state_dict().values():
            for start in range(0, tensor.numel(), CHUNK):
                file.write(noise[: min(CHUNK, tensor.numel() - start)].tobytes())


def open_base(base: str, way: str, dtype: torch.dtype) -> dict[str, float]:
    """Open ``base`` in this process; its seconds, and the peak of its anonymous memory in GiB."""
    from sdlora.families.loading import load_family

    over, peak = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            peak[0] = max(peak[0], _anonymous())

    before, begun, watcher = _anonymous(), time.monotonic(), threading.Thread(target=watch)
    watcher.start()
    family = load_family(Model(base=base), None if way == "whole" else dtype)
    names = [family.denoiser] if way == "denoiser" else [*family.modules]
    opened = {name: family.modules[name] for name in names}
    opened.pop("vae", None)
    for module in opened.values():
        module.to(dtype)
    over.set()
    watcher.join()
    held = {"peak_gib": (peak[0] - before) / 2**30, "afterwards_gib": (_anonymous() - before) / 2**30}
    return {"seconds": rounded(time.monotonic() - begun), **{name: rounded(value) for name, value in held.items()}}


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", default="sdxl", choices=("sd1", "sd2", "sdxl"))
    parser.add_argument("--dtype", default="bf16", choices=[*DTYPES])
    parser.add_argument("--way", choices=WAYS, help="open the base in this process, and print what it took")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--work", type=Path, required=True, help="where the base is written, once")
    add_options(parser)
    options = parser.parse_args(words)
    base = write_base(options.family, options.work / f"{options.family}-random")
    if options.way:
        print(json.dumps(open_base(str(base), options.way, getattr(torch, DTYPES[options.dtype]))))
        return
    figures = {}
    for way in options.ways:
        command = [sys.executable, "-m", "benchmarks.load", *words, "--way", way]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[way] = json.loads(ended.stdout.splitlines()[-1])
    rows = [
        ("way", "peak GiB", "afterwards GiB", "seconds"),
        *((way, *(f[n] for n in ("peak_gib", "afterwards_gib", "seconds"))) for way, f in figures.items()),
    ]
    plot = bars("Peak memory of opening the base", "GiB", [Bar(way, figures[way]["peak_gib"]) for way in figures])
    tell(
        options,
        result("load", words, {"family": options.family, "dtype": options.dtype}, ways=figures),
        columns(rows),
        plot,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
