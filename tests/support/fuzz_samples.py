"""Valid files of every kind that the product reads, small and written within milliseconds, for fuzzing to change."""

import io
import json
import os
import random
import shutil
import zipfile
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from sdlora import checkpoint, events
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.tensor_store import TensorStore
from sdlora.generation.axes import AXIS_TYPES, parse_axis
from sdlora.generation.xyz_grid import GridCell, ImageGrid, grid_cells, write_declaration
from sdlora.inference.generation_request import GenerationRequest
from sdlora.jobs.measurement import Measurement
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash
from tests.support.images import noise_image
from tests.support.single_file_checkpoints import write_single_file
from tests.support.tiny_models import (
    CAPTIONS,
    tiny_pipeline,
    tiny_tokenizer,
    write_tiny_adapter,
    write_tiny_clip,
    write_tiny_model,
)

STEM, CONV = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
COVER = "data:image/jpeg;base64,/9j/4AAQSkZJRg=="
METADATA = {
    "ss_output_name": "mystyle", "ss_sd_model_name": "pocket", "ss_base_model_version": "sd_v1",
    "ss_network_alpha": "2.0",
    "ss_tag_frequency": json.dumps({"10_sks dog": {"a dog": 3, "sks": 4}}), "modelspec.title": "My style",
    "modelspec.trigger_phrase": "sks, dog", "modelspec.prediction_type": "epsilon", "ss_zero_terminal_snr": "False",
    "modelspec.lora_default_weight": "0.8", "modelspec.thumbnail": COVER, "ssmd_cover_images": json.dumps([COVER]),
}  # fmt: skip
INFOTEXT = (
    "a (red:1.2) house <lora:a:0.8>\nNegative prompt: [blurry]\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Karras, "
    'CFG scale: 7, Seed: 1, Size: 512x512, Model hash: abc, Model: pocket, Clip skip: 2, Lora hashes: "a: abc"'
)
CARRIERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def once(make: Any) -> Any:
    """Write what ``make`` writes into a folder once a process; then it is copied."""

    @cache
    def folder(number: int) -> Path:
        made = Path(mkdtemp(prefix="fuzz-sample-"))
        torch.manual_seed(0)
        make(made)
        return made

    def copy(target: Path, rng: random.Random) -> None:
        shutil.copytree(folder(os.getpid()), target, dirs_exist_ok=True)

    return copy


def adapter(folder: Path, rng: random.Random) -> None:
    """One file of kohya's, LyCORIS's or diffusers' keys, with the metadata that tools write."""
    one = torch.ones
    ranked = {
        f"{STEM}.lora_down.weight": one(2, 8),
        f"{STEM}.lora_up.weight": one(8, 2),
        f"{STEM}.alpha": torch.tensor(2.0),
    }
    text = {f"{TEXT}.lora_down.weight": one(2, 16), f"{TEXT}.lora_up.weight": one(16, 2)}
    peft = {f"unet.mid_block.attentions.0.proj_in.{name}.weight": tensor
            for name, tensor in (("lora_A", one(2, 8)), ("lora_B", one(8, 2)))}  # fmt: skip
    kinds: list[dict[str, torch.Tensor]] = [
        ranked | text,
        ranked | {f"{STEM}.dora_scale": one(8, 1)},
        {f"{CONV}.lora_down.weight": one(2, 8, 1, 1), f"{CONV}.lora_up.weight": one(8, 2, 1, 1),
         f"{CONV}.lora_mid.weight": one(2, 2, 3, 3)},
        {f"{STEM}.hada_w{n}_{s}": one(8, 2) if s == "a" else one(2, 8) for n in (1, 2) for s in "ab"},
        {f"{STEM}.lokr_w1": one(2, 2), f"{STEM}.lokr_w2_a": one(4, 2), f"{STEM}.lokr_w2_b": one(2, 4)},
        {f"{STEM}.weight": one(8), f"{STEM}.on_input": torch.tensor(True)},
        {f"{STEM}.diff": one(8, 8), f"{STEM}.diff_b": one(8)},
        peft | {"unet.mid_block.attentions.0.proj_in.lora_magnitude_vector": one(8)},
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": one(2, 8),
         "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": one(8, 2)},
    ]  # fmt: skip
    header = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"proj_in": 8}, "unet.use_rslora": False}
    save_file(rng.choice(kinds), folder / "a.safetensors", METADATA | {"lora_adapter_metadata": json.dumps(header)})


def peft_folder(folder: Path, rng: random.Random) -> None:
    """A folder as PEFT writes it, of one component or with folders by component."""
    inner = folder / rng.choice(("", "unet", "text_encoder"))
    inner.mkdir(exist_ok=True)
    name = "base_model.model.mid_block.attentions.0.proj_in"
    kinds: list[tuple[str, dict[str, torch.Tensor]]] = [
        ("LORA", {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}),
        ("LOHA", {f"{name}.hada_w{n}_{s}": torch.ones(8, 2) if s == "a" else torch.ones(2, 8) for n in (1,
        2) for s in "ab"}),
        ("LOKR", {f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.lokr_w2": torch.ones(4, 4)}),
        ("IA3", {f"{name}.ia3_l": torch.ones(1, 8)}),
    ]  # fmt: skip
    kind, tensors = rng.choice(kinds)
    config = {
        "peft_type": kind, "r": 2, "lora_alpha": 4, "alpha": 4, "rank_pattern": {}, "alpha_pattern": {"proj_in": 2},
        "use_rslora": False, "use_dora": False, "target_modules": ["proj_in"], "init_lora_weights": True,
        "modules_to_save": None, "fan_in_fan_out": False,
    }  # fmt: skip
    save_file(tensors, inner / "adapter_model.safetensors")
    (inner / "adapter_config.json").write_text(json.dumps(config))


base_folder = once(lambda folder: write_tiny_model(folder, "sd1"))
clip_folder = once(lambda folder: write_tiny_clip(folder))
vocabulary = once(lambda folder: tiny_tokenizer().save_pretrained(folder))
single_file = once(lambda folder: write_single_file(folder / "a.safetensors", "sd1", tiny_pipeline()))


def image(folder: Path, rng: random.Random) -> None:
    """An image of any format, with a profile, EXIF and texts where the format has them; of several frames if it can."""
    kind = rng.choice(CARRIERS)
    modes = ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"] if kind == "TIFF" else ["RGB", "L", "P"]
    picture = noise_image(64, 48, rng.randrange(9)).convert(
        rng.choice(modes if kind in ("PNG", "TIFF", "GIF") else ["RGB"])
    )
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = rng.randrange(1, 9), "a house"
    options: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", INFOTEXT, zip=rng.random() < 0.3)
        texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
        options["pnginfo"] = texts
    if kind in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.4:
        options |= {"save_all": True, "append_images": [picture.copy(), picture.copy()]}
    if kind == "TIFF":
        options["compression"] = rng.choice((None, "tiff_lzw", "packbits", "tiff_adobe_deflate"))
    picture.save(folder / f"a.{kind.lower()}", kind, **options)


def data_folder(folder: Path, rng: random.Random) -> None:
    """A folder to train on, with captions, a mask, and a sub-folder of kohya's naming."""
    inner = folder / rng.choice(("10_sks dog", "1_a", "999_x y z style"))
    inner.mkdir()
    for number, place in enumerate((folder, folder, inner)):
        noise_image(64, 48, number).save(place / f"{number}.png")
        (place / f"{number}{rng.choice(('.txt', '.caption'))}").write_text(CAPTIONS[number], encoding="utf-8")
    noise_image(64, 48).convert("L").save(folder / "0.mask.png")


def zip_file(folder: Path, rng: random.Random) -> None:
    """A zip of pictures and captions, as people and as attackers name and pack them."""
    content = io.BytesIO()
    noise_image(40, 40, rng.randrange(9)).save(content, "PNG")
    names = [
        "a.png", "a.txt", "10_sks dog/b.png", "10_sks dog/b.txt", "A.PNG", "../../evil.png", "/abs.png", "C:\\x\\c.png",
        "..\\..\\d.png", "e.png.", "f .png ", "con.png", "g.mask.png", "__MACOSX/._a.png", "inner.zip",
        "\u202egnp.exe.png",
        "n\0.png", "x" * 3000 + ".png", "reg/h.png", "dir/", "e\u0301.png", "\u00e9.txt", "metadata.jsonl",
        "a/b/c/d/e/i.png",
    ]  # fmt: skip
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in rng.choices(names, k=rng.randrange(1, 6)):
            entry = zipfile.ZipInfo(name)
            entry.filename = name  # As it is: the library cuts NULs and changes slashes.
            entry.compress_type = rng.choice(methods)
            entry.external_attr = rng.choice((0, 0, 0o100644 << 16, 0o120777 << 16, 0o10644 << 16, 0x10))
            body = content.getvalue() if name.lower().strip(" .").endswith("png") else b"a red house"
            archive.writestr(entry, rng.choice((body, body, bytes(3_000_000), b"")))
        archive.comment = rng.choice((b"", b"PK\5\6" * 5))


def text_of(*texts: str) -> Any:
    """A maker of a file with one of ``texts``."""

    def make(folder: Path, rng: random.Random) -> None:
        (folder / "a.txt").write_text(rng.choice(texts), encoding="utf-8")

    return make


prompt = text_of(
    "a (red:1.2) [house] <lora:a:0.8:te=0.5> BREAK \\(x\\)", "<lora:a:0.8>, <lora:b:1:0.5> cat", "((a)) [b:1.3]"
)
axis = text_of(
    "1, 2, 3-5, 0-1 (+0.25), 0-1 [5]", 'red, "blue, dark", green', "a house\na cat", "DPM++ 2M, Euler a", "all"
)
infotext = text_of(INFOTEXT, INFOTEXT.replace("\n", "\r\n"), "Steps: 20, Sampler: Euler a, Size: 5x5", "a house")
AXES = (*AXIS_TYPES, "x")


def preset(folder: Path, rng: random.Random) -> None:
    """A config with many settings."""
    config = TrainConfig.parse(
        {"data": {"folder": str(folder)}}, "here", {"adapter.method": rng.choice(("lora", "lokr"))}
    )
    config.save(folder / "a.toml")


def run(folder: Path, rng: random.Random) -> None:
    """A run with a journal of all events, a state, previews and an adapter; queued."""
    data = folder / "data" / "runs"
    made = Run.create(data, "mine", TrainConfig.parse({"data": {"folder": str(folder)}}, "here"))
    known: dict[Any, Any] = {int: 3, float: 0.5, str: "samples/000001-0.png", Any: [1]}
    kinds = [*events.Event.KINDS.values()]
    rng.shuffle(kinds)
    told = [kind(**{f: known[t] for f, t in _fields(kind)}) for kind in kinds]
    (made.folder / "journal.jsonl").write_text("".join(f"{event.to_json()}\n" for event in told))
    noise_image(64, 64).save(made.samples / "000001-0.png")
    write_tiny_adapter(made.adapter, **METADATA)
    (made.folder / "adapter.json").write_text('{"activation text": "sks"}')
    made.queued_file.write_text("1700000000000000000")
    made.log.write_text("step 1\rstep 2\n")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    tensors, values = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(made.states, checkpoint.State(2, tensors, {"optimizer": values, "scaler": None, "started": 1.0}), 2)


def _fields(kind: type[events.Event]) -> list[tuple[str, Any]]:
    return [(each.name, each.type) for each in fields(kind) if each.name != "time"]


def grid(folder: Path, rng: random.Random) -> None:
    """A grid with its finished cells."""
    axes = (parse_axis("seed", "1-2"), parse_axis("replace", "house, cat"))
    cells = grid_cells(GridCell(prompt="a house", steps=2, seed=1, adapter="a"), axes)
    write_tiny_adapter(folder / "a.safetensors", **METADATA)
    write_declaration(ImageGrid(axes, cells, {"a": str(folder / "a.safetensors")}, subject="a"), folder / "g")
    for number, cell in enumerate(cells):
        noise_image(64, 64, number).save(folder / "g" / cell.file)


def project(folder: Path, rng: random.Random) -> None:
    """A project with captions, and steps to undo."""
    mine = Project(folder / "data", "mine")
    mine.folder.mkdir(parents=True)
    for number in (1, 2, 3):
        noise_image(64, 48, number).save(mine.folder / f"{number:03d}.png")
        (mine.folder / f"{number:03d}.txt").write_text("a red house")
    mine.set_info(ProjectInfo("subject", "sks", "dog"))
    mine.replace("red", "blue")
    mine.remove(mine.images()[2])


def trash(folder: Path, rng: random.Random) -> None:
    """Something in the trash, and an adapter of the library with its report."""
    adapters = folder / "data" / "adapters"
    write_tiny_adapter(adapters / "gone.safetensors", **METADATA)
    Trash(folder / "data").put([adapters / "gone.safetensors"], "gone", "the adapter gone")
    write_tiny_adapter(adapters / "a.safetensors", **METADATA)
    (adapters / "a.check.json").write_text('{"base": "pocket", "refusal": ""}')


def request(folder: Path, rng: random.Random) -> None:
    """A request of images to a training that holds the device."""
    made = GenerationRequest(prompt="a house", count=2, base_settings={"prediction_type": "epsilon"}, seed=3)
    requests = folder / "cpu-here.requests"
    requests.mkdir()
    (requests / "1-1-1.asked").write_text(made.model_dump_json())


def latents(folder: Path, rng: random.Random) -> None:
    """Cached latents."""
    TensorStore(folder).put("ab" * 32, {"mean": torch.ones(4, 2, 2), "std": torch.ones(4, 2, 2)})


def measurement(folder: Path, rng: random.Random) -> None:
    """A stored measurement of a run; its reader puts it where that is looked for."""
    found = Measurement(device="cpu", width=64, height=64, load=1.0, encode=0.1, step=0.5, sampling=0.1, picture=0.2,
                        memory=10**9, resolution=64, counted=10**9, rungs=[{"changes": {"gradient_checkpointing": True},
                        "needs": 10**9, "costs": "slower"}], chosen={"train.batch_size": 1},
                        told=["less memory"])  # fmt: skip
    (folder / "estimate.json").write_text(json.dumps(asdict(found)))
    noise_image().save(folder / "a.png")


def variables(folder: Path, rng: random.Random) -> None:
    """Environment variables with paths and words."""
    (folder / "models").mkdir()
    values = {
        "SDLORA_MODELS": f"{folder / 'models'}:/nowhere",
        "SDLORA_DATA_DIR": str(folder),
        "SDLORA_FAULT": "file.begun:3",
    }
    (folder / "variables.json").write_text(json.dumps(values))


def words(folder: Path, rng: random.Random) -> None:
    """Names that people give to projects, runs, adapters and files."""
    names = ["mystyle", "My Style ", "style. ", "a/b", "e\u0301t\u00e9", "run-2"]
    (folder / "names.json").write_text(json.dumps(names))
