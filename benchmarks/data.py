"""A large folder of large pictures into the latent cache: ``python -m benchmarks.data --pictures 1000 --json``.

The pictures are a few JPEG files of 12 megapixels, repeated: each is written again with a comment of its own behind its
pixels, so that every file has bytes, a digest and a place in the cache of its own, and is read and decoded by itself.
What is simulated is thus their number; their sizes and the work on each are true. A real folder would differ in what
the disk has to fetch: these files were just written, and lie in the system's cache.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks import models
from benchmarks.plot import Bar, bars
from benchmarks.report import add_options, columns, result, rounded, spread, tell
from sdlora.data import buckets
from sdlora.data.cache import LatentCache, View
from sdlora.data.cropping import crop_and_resize
from sdlora.data.dataset import Example, load_dataset
from sdlora.data.images import ImageSize, open_image, to_pixels
from sdlora.data.settings import Data
from sdlora.data.tensor_store import TensorStore
from sdlora.families.settings import Model
from sdlora.filesystem.reading import sha256

SIDES = ((4000, 3000), (3000, 4000), (4096, 2896), (3600, 3400))
"""Size of the few camera images: 12 megapixels each."""
COMMENT = b"\xff\xfe"
"""The marker of a JPEG comment; two bytes of its length follow."""
EVERY = 0.25
"""Seconds between two looks at the memory."""
PARTS = 10
"""A rate is taken of each of so many parts of the pictures."""
MIB = 2**20


def photographs(folder: Path, count: int) -> None:
    """``count`` JPEG files of 12 megapixels with distinct bytes, out of a few: hard links would share their digests."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    originals = []
    for number, (width, height) in enumerate(SIDES):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        grain = Image.fromarray(rng.integers(0, 256, (height, width), np.uint8))
        path = folder / f"original-{number}.jpg"
        Image.composite(picture, Image.blend(picture, grain.convert("RGB"), 0.06), grain).save(path, quality=88)
        originals.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        (folder / f"{number:06}.jpg").write_bytes(marked(originals[number % len(originals)], number))


def marked(jpeg: bytes, number: int) -> bytes:
    """The same picture with a comment that no other has, behind the two bytes that begin every JPEG."""
    text = f"{number:012}".encode()
    return jpeg[:2] + COMMENT + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


class Memory:
    """Samples of this process's memory, taken all the time, each with its moment."""

    def __init__(self) -> None:
        self.looks: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._over.wait(EVERY):
            self.looks.append((time.perf_counter(), process.memory_info().rss / MIB))

    def between(self, begin: float, end: float) -> list[float]:
        """MiB in equal parts of that time: the most of each."""
        looks = [(moment, size) for moment, size in self.looks if begin <= moment <= end]
        width = (end - begin) / PARTS
        parts = [[size for moment, size in looks if int((moment - begin) / width) == part] for part in range(PARTS)]
        return [rounded(max(part)) for part in parts if part]


def into_cache(examples: Sequence[Example], folder: Path, encode: Callable, most: float) -> list[float]:
    """The moments at which nothing, and each further tenth of the latents, was there; the last, where it stopped."""
    cache = LatentCache(TensorStore(folder), "benchmark")
    sizes = buckets.assign_buckets(examples, 128, 16, True)
    moments = [time.perf_counter()]
    marks = {len(examples) * part // PARTS for part in range(1, PARTS + 1)}

    def note(done: int, total: int) -> None:
        if done in marks:
            moments.append(time.perf_counter())

    views = [View(*pair) for pair in zip(examples, sizes, strict=True)]
    cache.prepare(views, encode, note, lambda: time.perf_counter() - moments[0] > most)
    return moments


def alone(examples: Sequence[Example], encode: Callable, few: int) -> dict[str, float]:
    """Milliseconds of each part of the work on a file, one after the other."""
    parts: dict[str, list[float]] = {"decode": [], "digest": [], "encode": []}
    for example in examples[:few]:
        size = buckets.assign_buckets([example], 128, 16, True)[0]
        begun = time.perf_counter()
        rgb, _ = open_image(example.path, "#ffffff", size)
        pixels = to_pixels(crop_and_resize(rgb, ImageSize(*size)))
        read = time.perf_counter()
        sha256(example.path)
        known = time.perf_counter()
        encode(pixels[None])
        parts["decode"].append(read - begun)
        parts["digest"].append(known - read)
        parts["encode"].append(time.perf_counter() - known)
    return {f"{name}_ms": rounded(1e3 * spread(times)["median"]) for name, times in parts.items()}


def measure(options: argparse.Namespace, words: list[str], work: Path) -> dict[str, Any]:
    import torch

    from sdlora.families.loading import load_family

    family = load_family(Model(base=models.find(options.model, work)))
    with torch.no_grad():
        family.encode_images(torch.zeros(1, 3, 128, 128))
    photographs(work / "pictures", options.pictures)
    size = sum(path.stat().st_size for path in (work / "pictures").iterdir())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with Memory() as memory:
        begun, worked = time.perf_counter(), time.process_time()
        examples = load_dataset(Data(folder=work / "pictures")).examples
        looked, looking = time.perf_counter(), time.process_time() - worked
        moments = into_cache(examples, work / "latents", family.encode_images, options.seconds)
        ended, caching = time.perf_counter(), time.process_time() - worked - looking
    if len(moments) < 2:
        raise SystemExit(f"not a tenth of the pictures in {options.seconds} seconds; give more --seconds")
    with torch.no_grad():
        each = alone(examples, family.encode_images, min(options.pictures, 20))
    done = len(examples) * (len(moments) - 1) // PARTS
    seconds = moments[-1] - moments[0]
    in_turn = done * sum(each.values()) / 1e3
    scanning = looked - begun
    figures = {
        "scan_files_a_second": rounded(len(examples) / scanning),
        "cache_files_a_second": rounded(done / seconds),
        "cache_rates": [rounded(len(examples) / PARTS / (b - a)) for a, b in pairwise(moments)],
        "cached": done,
        "one_by_one": each,
        "in_turn_over_measured": rounded(in_turn / seconds, 3),
        "busy_cores": {"scan": rounded(looking / scanning, 3), "cache": rounded(caching / (ended - looked), 3)},
        "floor_files_a_second": rounded(cores * done / in_turn),
        "mib_while_scanning": memory.between(begun, looked),
        "mib_while_caching": memory.between(looked, ended),
        "bytes_of_files": size,
    }
    config = {
        "model": options.model,
        "pictures": options.pictures,
        "megapixels": 12,
        "simulated": "by repeats of 4 JPEGs",
    }
    return result("data", words, config, **figures)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000, help="files in the folder (1000); 3 MB each on the disk")
    parser.add_argument("--seconds", type=float, default=240, help="at most for the way into the cache (240)")
    parser.add_argument("--model", default="pocket", help="whose VAE encodes them (pocket)")
    add_options(parser)
    return parser.parse_args(words)


def table(found: dict[str, Any]) -> list[str]:
    busy = found["busy_cores"]
    each = ", ".join(f"{name.removesuffix('_ms')} {value} ms" for name, value in found["one_by_one"].items())
    return [
        *columns(
            [
                ["", "files/s", "busy cores", "MiB, from first to last"],
                ["scan", found["scan_files_a_second"], busy["scan"], span(found["mib_while_scanning"])],
                ["into the cache", found["cache_files_a_second"], busy["cache"], span(found["mib_while_caching"])],
            ]
        ),
        f"a file by itself: {each}; "
        f"one after the other would take {found['in_turn_over_measured']} times as long; "
        f"all cores on nothing else: {found['floor_files_a_second']} files/s",
    ]


def span(sizes: Sequence[float]) -> str:
    return f"{sizes[0]:.0f} ... {sizes[-1]:.0f}, at most {max(sizes):.0f}" if sizes else "too short to see"


def chart(found: dict[str, Any]) -> Image.Image:
    rows = [Bar("scan, files/s", found["scan_files_a_second"])]
    for number, rate in enumerate(found["cache_rates"], start=1):
        label = f"into the cache, {number} of {len(found['cache_rates'])}"
        rows.append(Bar(label, rate, bound=None, floor=found["floor_files_a_second"]))
    return bars(f"{found['config']['pictures']} pictures of 12 megapixels", "files/s", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        found = measure(options, words, Path(folder))
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
