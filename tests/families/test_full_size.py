"""The whole main job on a model of SD 1.5's true size, with random weights: nobody has the released ones here.

    python -m pytest -m slow -s tests/families/test_full_size.py

Each part runs in a process of its own, whose time and peak memory are printed at the end.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.families.single_file import CONFIGS
from tests.support.single_file_checkpoints import write_full_size_vocabulary

SIZE, STEPS, RANK = 256, 3, 8
PROMPT = "a red house on grass"
MOST_GB = 12.0
"""Memory that no part may exceed."""
LAYERS = {"unet": 192, "text_encoder": 72}
SAMPLING = {"seed": 7, "steps": 3, "cfg": 7, "sampler": "DDIM", "width": SIZE, "height": SIZE}


def build(base: Path) -> None:
    """The architecture of the bundled configs, with PyTorch's and transformers' own first weights, in fp16 on disk."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    def config(part: str, file: str = "config.json") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((CONFIGS / "sd1" / part / file).read_text())
        return found

    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config("unet")).half().save_pretrained(base / "unet")
    AutoencoderKL.from_config(config("vae")).half().save_pretrained(base / "vae")
    CLIPTextModel(CLIPTextConfig(**config("text_encoder"))).half().save_pretrained(base / "text_encoder")
    write_full_size_vocabulary(base / "tokenizer")
    (base / "scheduler").mkdir()
    for part, file in (("scheduler", "scheduler_config.json"), (".", "model_index.json")):
        (base / part / file).write_text(json.dumps(config(part, file)))


def train(base: Path, pictures: Path, folder: Path, stop_after: int | None) -> dict[str, Any]:
    from sdlora.config import TrainConfig
    from sdlora.events import RunStarted, SampleReady, StepDone
    from tests.support.training import train_in_process

    values = {
        "model.base": str(base), "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": SIZE,
        "adapter.targets": "linear", "adapter.rank": RANK, "train.steps": STEPS, "train.learning_rate": 1e-3,
        "train.device": "cpu", "checkpoint.every": 1, "sample.every": STEPS, "sample.prompts": [PROMPT],
        "sample.steps": 2, "sample.width": SIZE, "sample.height": SIZE,
    }  # fmt: skip
    finished, events, output = train_in_process(TrainConfig.parse({}, "test", values), folder, stop_after)
    started = next(event for event in events if type(event) is RunStarted)
    return {
        "finished": finished,
        "adapter": output.adapter,
        "losses": [event.loss for event in events if type(event) is StepDone],
        "seconds": [event.seconds for event in events if type(event) is StepDone],
        "previews": [event.step for event in events if type(event) is SampleReady],
        "share": started.share,
        "modules": started.modules,
    }


def draw(base: Path, one: Path, two: Path, folder: Path) -> dict[str, np.ndarray]:
    """The base's picture, the first adapter's, and both mixed; and the first in each format of files."""
    from sdlora.formats import FORMATS, export_adapter, read_adapter
    from sdlora.generation.studio import Studio

    for format in FORMATS:
        print(format, export_adapter(read_adapter(one), folder / f"{format}.safetensors", format))
    studio = Studio(str(base), device="cpu")

    def generated() -> np.ndarray:
        return np.asarray(studio.generate(PROMPT, **SAMPLING)[0])

    found = {"base": generated()}
    studio.add_adapter("one", one)
    found["one"] = generated()
    studio.add_adapter("two", two, scale=-0.5)
    found["mixed"] = generated()
    return found


def draw_plainly(base: Path, file: Path) -> np.ndarray:
    """The same picture by diffusers alone, from an exported file."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)  # Else on by default.
    pipeline.load_lora_weights(str(file))
    answer = pipeline(
        PROMPT, negative_prompt="", num_inference_steps=SAMPLING["steps"], guidance_scale=SAMPLING["cfg"],
        width=SIZE, height=SIZE, generator=torch.Generator().manual_seed(SAMPLING["seed"]),
    )  # fmt: skip
    return np.asarray(answer.images[0])


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Return the result of ``work``, its seconds, and the peak memory of the process so far in GB."""
    torch.set_num_threads(2)
    begun = time.monotonic()
    answer = work(*arguments)
    return answer, time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@contextmanager
def apart() -> Iterator[Callable[..., Any]]:
    """Calls in new processes, one after the other; at the end a table of times and memory is printed."""
    table: list[tuple[str, float, float]] = []

    def call(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            answer, seconds, memory = pool.submit(measured, work, *arguments).result()
        table.append((name, seconds, memory))
        return answer

    try:
        yield call
    finally:
        print("\n" + "\n".join(f"{name:28} {seconds:6.1f} s {memory:6.2f} GB" for name, seconds, memory in table))
    assert max(memory for *_, memory in table) < MOST_GB


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Folder of the model: two gigabytes, which pytest would keep."""
    yield tmp_path / "base"
    shutil.rmtree(tmp_path / "base", ignore_errors=True)


@pytest.mark.slow
def test_the_main_job_at_full_size(base: Path, tmp_path: Path) -> None:
    from sdlora.formats import read_adapter

    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    out.mkdir()
    for number in range(3):
        Image.effect_noise((SIZE, SIZE), 60 * number + 20).convert("RGB").save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"{PROMPT} {number}")
    with apart() as call:
        call("build and save", build, base)
        whole = call("train", train, base, pictures, tmp_path / "whole", None)
        assert whole["finished"] and whole["previews"] == [0, STEPS]
        assert (whole["modules"], whole["share"] < 0.02) == (sum(LAYERS.values()), True)
        assert len(whole["losses"]) == STEPS and np.isfinite(whole["losses"]).all()
        print("seconds a step:", [round(seconds, 1) for seconds in whole["seconds"]])
        stopped = call("train, stopped after 1", train, base, pictures, tmp_path / "parts", 1)
        resumed = call("resumed", train, base, pictures, tmp_path / "parts", None)
        assert (stopped["finished"], resumed["finished"]) == (False, True)
        assert stopped["losses"] + resumed["losses"] == whole["losses"]
        first, again = read_adapter(whole["adapter"]), read_adapter(resumed["adapter"])
        for path, module in first.modules.items():
            assert all(torch.equal(again.modules[path].tensors[name], t) for name, t in module.tensors.items()), path
        components = [path.partition(".")[0] for path in first.modules]
        assert {name: components.count(name) for name in LAYERS} == LAYERS

        checkpoint = tmp_path / "whole" / "checkpoints"
        earlier = min(checkpoint.rglob("*.safetensors"))
        ours = call("draw three, export", draw, base, whole["adapter"], earlier, out)
        assert all(picture.std() > 1 for picture in ours.values())
        assert not np.array_equal(ours["base"], ours["one"]) and not np.array_equal(ours["one"], ours["mixed"])
        for file in sorted(out.glob("*.safetensors")):
            theirs = call(f"diffusers, {file.stem} keys", draw_plainly, base, file)
            assert np.abs(theirs.astype(int) - ours["one"].astype(int)).max() <= 1, file.stem
            print(file.name, f"{file.stat().st_size / 1e6:.1f} MB")
