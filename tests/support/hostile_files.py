"""Hostile files, made by code: nothing of the kind lies in the repository."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from tests.support.images import noise_image

Maker = Callable[[Path], object]
"""Makes one hostile file at a path."""

STEM = "lora_unet_mid_block_attentions_0_proj_in"
OTHER = "lora_unet_mid_block_attentions_0_proj_out"


def lora(stem: str = STEM, **parts: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    tensors |= {name.replace("__", "."): tensor for name, tensor in parts.items()}
    return {f"{stem}.{name}": tensor for name, tensor in tensors.items()}


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


GOOD = save(lora())
"""The bytes of an adapter that is fine."""
ADAPTERS = {
    "empty": (b"", "not a safetensors file, or is cut short"),
    "cut in the header": (GOOD[:40], "cut short"),
    "cut in the tensors": (GOOD[:-1], "cut short"),
    "bytes behind": (GOOD + b"x", "beyond its last tensor"),
    "pickle renamed": (pickle.dumps({"a": [1.0] * 100}), "not a safetensors file"),
    "page renamed": (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
    "header over the limit": (framed(b" " * (9 << 20)), "header of 9.00 MiB is over"),
    "header no JSON": (framed(b"{nonsense"), "header is no JSON"),
    "header a list": (framed(b"[1, 2]"), "no JSON object"),
    "header of numbers": (framed(b'{"a": 1}'), "header (is damaged|lists no tensors)"),
    "header without offsets": (
        framed(b'{"a": {"dtype": "F32", "shape": [1]}}'),
        "header (is damaged|lists no tensors)",
    ),
    "endless offsets": (framed(b'{"a": {"data_offsets": [0, Infinity]}}'), "header is damaged"),
    "deep header": (framed(b'{"a":' * 100_000), "no JSON"),
    "no tensors": (save({}), "holds no tensors"),
    "NaN": (save(lora(lora_up__weight=torch.full((8, 2), float("nan")))), "lora_up.weight: holds NaN or infinite"),
    "infinite": (save(lora(lora_down__weight=torch.full((2, 8), float("inf")))), "holds NaN or infinite"),
    "infinite in float32": (save(lora(lora_up__weight=torch.full((8, 2), 1e300, dtype=torch.float64))), "infinite"),
    "NaN alpha": (save(lora(alpha=torch.tensor(float("nan")))), "alpha: holds NaN"),
    "whole numbers": (save(lora(lora_up__weight=torch.ones(8, 2, dtype=torch.int8))), "type int8, not floating-point"),
    "two alphas": (save(lora(alpha=torch.ones(2))), "alpha has 2 values"),
    "ranks differ": (save(lora(lora_up__weight=torch.ones(8, 3))), "their ranks are 2 and 3"),
    "rank 0": (save(lora(lora_down__weight=torch.ones(0, 8), lora_up__weight=torch.ones(8, 0))), "do not go together"),
    "one axis": (save(lora(lora_down__weight=torch.ones(8))), "no low-rank layer's shapes"),
    "up with a kernel": (save(lora(lora_up__weight=torch.ones(8, 2, 3, 3))), "no low-rank layer's shapes"),
    "A without B": (save({f"{STEM}.lora_down.weight": torch.ones(2, 8)}), "its down is there without its up"),
    "alpha alone": (save(lora() | {f"{OTHER}.alpha": torch.tensor(1.0)}), "its alpha is there without its down and up"),
    "twice": (save(lora() | lora(STEM.replace("lora_unet", "lora_te")) | lora(STEM.replace("unet", "te1"))), "twice"),
    "LoHa in part": (
        save({f"{STEM}.hada_w1_a": torch.ones(2, 2)}),
        "hada_w1_a is there without its hada_w1_b and hada",
    ),
    "LoHa of two ranks": (
        save({f"{STEM}.hada_w{n}_{s}": torch.ones(2, 2 + n * (s == "b")) for n in (1, 2) for s in "ab"}),
        "do not go together",
    ),
    "LoKr in part": (
        save({f"{STEM}.lokr_w1": torch.ones(2, 2)}),
        "lokr_w1 is there without its lokr_w2_a and lokr_w2_b",
    ),
    "LoRA and LoHa": (save(lora(hada_w1_a=torch.ones(8, 2))), "they are of several methods"),
    "LoHa with lengths": (
        save({f"{STEM}.hada_w1_a": torch.ones(8, 2), f"{STEM}.dora_scale": torch.ones(8)}),
        "several",
    ),
    "DoRA of another size": (save(lora(dora_scale=torch.ones(9, 1))), "magnitude has 9 values for 8 channels"),
    "DoRA by input, another size": (save(lora(dora_scale=torch.ones(1, 9))), "input_magnitude has 9 values for 8"),
    "Tucker of two ranks": (save(lora(lora_mid__weight=torch.ones(3, 2, 3, 3))), "do not go together"),
    "IA3 in part": (save({f"{STEM}.weight": torch.ones(8)}), "takes a weight and one number on_input"),
    "bias of another size": (
        save({f"{STEM}.diff": torch.ones(8, 8), f"{STEM}.diff_b": torch.ones(7)}),
        "diff_b has 7 values for 8 channels",
    ),
    "too wide": (
        save({f"{STEM}.lora_down.weight": torch.ones(1, 200_000), f"{STEM}.lora_up.weight": torch.ones(200_000, 1)}),
        "which no base has",
    ),
    "too high a rank": (
        save({f"{STEM}.lora_down.weight": torch.ones(20_000, 1), f"{STEM}.lora_up.weight": torch.ones(1, 20_000)}),
        "rank 20000 is over",
    ),
    "too large a product": (
        save({f"{STEM}.lokr_w1": torch.ones(20_000, 1), f"{STEM}.lokr_w2": torch.ones(20_000, 1)}),
        "which no base has",
    ),
    "odd kernel": (save({f"{STEM}.diff": torch.ones(8, 8, 3)}), "do not go together"),
    "header's alpha NaN": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'},
        ),
        "alpha 'nan' is no number up to",
    ),
    "header's alpha endless": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 10**400})},
        ),
        "is no number up to",
    ),
    "header's alphas without end": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {
                "lora_adapter_metadata": json.dumps(
                    {"unet.lora_alpha": 1, "unet.alpha_pattern": {f"p{n}": 1 for n in range(5000)}}
                )
            },
        ),
        "alpha_pattern has 5000 entries",
    ),
    "OFT": (save({f"{STEM}.oft_blocks": torch.ones(2, 4, 4)}), "is OFT .* not read"),
    "normalisation": (
        save(lora() | {"lora_unet_mid_block_resnets_0_norm1.w_norm": torch.ones(8)}),
        "normalisation layers",
    ),
    "a model, no adapter": (
        save({"model.diffusion_model.out.2.weight": torch.ones(4)}),
        "no adapter that is known here",
    ),
    "header's alphas no JSON": (
        save({"unet.a.lora_A.weight": torch.ones(1, 1)}, {"lora_adapter_metadata": "{"}),
        "lora_adapter_metadata is no JSON object",
    ),
    "header's alpha no number": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "much"})},
        ),
        "alpha 'much' is no number",
    ),
    "header's alphas by expressions": (
        save(
            {"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)},
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 2}})},
        ),
        "no plain layer name",
    ),
}
"""Bytes of adapter files, each with a reason why it is refused."""


def png(picture: Image.Image | None = None, **options: object) -> bytes:
    file = BytesIO()
    (picture or noise_image()).save(file, "PNG", **options)
    return file.getvalue()


def content(*pieces: bytes) -> Maker:
    """A file of those bytes."""
    return lambda path: path.write_bytes(b"".join(pieces))


def picture(width: int, height: int, mode: str = "RGB") -> Maker:
    return lambda path: Image.new(mode, (width, height)).save(path, "PNG")


def wrong_checksum(path: Path) -> None:
    damaged = bytearray(png())
    damaged[-14] ^= 1  # in the checksum of the last IDAT chunk, before the 12 bytes of IEND
    path.write_bytes(damaged)


def picture_bomb(path: Path | BytesIO) -> None:
    """169 million pixels in half a megabyte."""
    Image.new("1", (13000, 13000)).save(path, "PNG")


def text_bomb(path: Path) -> None:
    """150 MB of text beside the pixels, in half a megabyte."""
    text = PngImagePlugin.PngInfo()
    for number in range(3):
        text.add_text(f"k{number}", "0" * 50_000_000, zip=True)
    noise_image().save(path, pnginfo=text)


def zip_of(entries: dict[str | zipfile.ZipInfo, bytes], **options: object) -> Maker:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, inside in entries.items():
                archive.writestr(name, inside)

    return make


def zip_bomb(path: Path) -> None:
    """Ten pictures of 40 MB each, in 400 kB."""
    zip_of({f"{number}.bmp": bytes(40_000_000) for number in range(10)}, compression=zipfile.ZIP_DEFLATED)(path)


def header_bomb(path: Path) -> None:
    """A safetensors header just below the limit, of which Python makes the most objects."""
    path.write_bytes(framed(b"[" + b'{"":0},' * 1_000_000 + b"0]"))


def large_header(path: Path) -> None:
    """A header above the limit: 64 MB."""
    path.write_bytes(framed(b" " * (64 << 20)))


def deep_json(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


def deep_toml(path: Path) -> None:
    path.write_text(f"data.folder = {'[' * 100_000}")


def dotted_toml(path: Path) -> None:
    """Names within names, without a bracket: the library's time grows with their cube."""
    path.write_text(f"data.folder = 'x'\n{'a.' * 200_000}a = 1")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    """A file that never ends."""
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def canary(path: Path, written: Path) -> None:
    """A Python file that writes another one when it is run, or imported."""
    path.write_text(f"open({str(written)!r}, 'w').write('sung')\nclass Evil:\n    pass\n")


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, written: Path):
        self.written = written

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self.written)!r}, 'w').write('sung')",))


def pickled(path: Path, written: Path) -> None:
    """A pickle that writes another file when it is opened."""
    path.write_bytes(pickle.dumps({"state_dict": Bomb(written)}))


class Refused(NamedTuple):
    """Exit code and error message of a command."""

    code: int
    sentence: str


def contents(folder: Path) -> dict[str, int]:
    """Every file below ``folder`` with its size, but for locks, which hold nothing."""
    found = (path for path in folder.rglob("*") if "locks" not in path.parts)
    return {str(path): path.lstat().st_size for path in found if path.is_symlink() or not path.is_dir()}
