"""The comparison of training steps runs and says what it must. Nothing here asserts how fast anything is."""

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout

import pytest
from PIL import Image

from benchmarks import page, pictures, train_step
from benchmarks.models import byte_tokenizer

FINITE = [
    "reference_over_ours", "processor_ratio", "flop_bound", "matrix_gflops_per_second", "parameters",
    *(f"{side}_{what}" for side in ("reference", "ours")
      for what in ("seconds", "processor_seconds", "floor_seconds", "gflop", "loss")),
]  # fmt: skip


@pytest.fixture(scope="module")
def printed(tiny_base):
    """Return the lines that the command prints for a short run on the tiny base."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        train_step.main(["--model", str(tiny_base), "--batch-size", "2", "--steps", "2", "--rank", "4", "--json"])
    return out.getvalue().splitlines()


def test_the_last_line_is_one_json_object_of_finite_figures(printed):
    found = json.loads(printed[-1])
    assert all(math.isfinite(found[name]) and found[name] > 0 for name in FINITE)
    for name in ("reference_quartiles", "ours_quartiles", "ratio_quartiles"):
        low, high = found[name]
        assert 0 < low <= high
    assert found["config"]["steps"] == found["config"]["turns"] == 2
    assert {"processor", "cores", "memory_gib"} <= found["machine"].keys()
    assert found["versions"]["torch"]
    assert found["command"].startswith("python -m benchmarks.train_step --model ") and "/" not in found["command"]


def test_both_loops_train_the_same_and_the_reference_does_more(printed):
    found = json.loads(printed[-1])
    layers = 32 * 4 + 2 * 4  # 32 attentions of an SD 1.x UNet, 2 text layers; q, k, v, out
    assert found["parameters"] > layers * 4 * 16  # rank 4, at least 8 channels on either side
    assert found["flop_bound"] > 1  # the VAE
    # fresh random weights predict nothing: each half's loss is the noise's variance, 1, and a little more
    assert found["reference_loss"] == pytest.approx(found["ours_loss"], rel=0.15)


def test_the_table_is_for_people(printed):
    lines = train_step.table(json.loads(printed[-1])).splitlines()
    assert sum(line.startswith(("reference  ", "ours  ")) for line in lines) == 2


def test_noise_pictures_have_odd_sizes_larger_than_the_training_size(tmp_path):
    folders = pictures.noise(tmp_path, resolution=64, count=5)
    sizes = [[Image.open(path).size for path in sorted(folder.iterdir())] for folder in folders]
    assert list(map(len, sizes)) == [6, 5]
    assert len({size for group in sizes for size in group}) > 6
    assert min(side for group in sizes for size in group for side in size) >= 64


def test_the_full_size_tokenizer_marks_beginning_and_end_as_clip_does():
    ids = byte_tokenizer()("a cat", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77 and ids[0] == 49406 and ids[-1] == 49407


def test_the_page_shows_the_kept_results():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text
