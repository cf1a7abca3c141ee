"""Each measurement runs on something tiny and says what it must. Nothing here asserts how fast anything is."""

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout

import pytest
from PIL import Image

from benchmarks import data, generate, memory, page, plot, report, scale_out, start, whole_run


def figures(value):
    """All numbers in a JSON object."""
    if isinstance(value, dict | list):
        return [number for part in (value.values() if isinstance(value, dict) else value) for number in figures(part)]
    return [value] if isinstance(value, int | float) else []


def run(module, *words):
    """Return the output of the command with ``--json``, and its plot."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        module.main([*map(str, words), "--json"])
    found = json.loads(out.getvalue().splitlines()[-1])
    assert found["benchmark"] == module.__name__.partition(".")[2]
    assert {"processor", "cores"} <= found["machine"].keys() and found["versions"]["torch"]
    assert found["command"].startswith(f"python -m {module.__name__} ") and "/" not in found["command"]
    assert all(math.isfinite(number) and number >= 0 for number in figures(found))
    assert len(module.table(found)) > 1
    assert module.chart(found).size[0] == plot.WIDTH
    return found


def test_memory_compares_what_both_sides_keep(tiny_base, tmp_path):
    rows = tmp_path / "rows.json"
    words = ("--model", tiny_base, "--resolution", 64, "--rank", 2, "--resume", rows)
    found = run(memory, *words)
    for row in found["rows"]:
        assert 0 < row["ours"]["kept_bytes"] <= row["peft"]["kept_bytes"]
        assert sum(row["peft"]["kinds"].values()) == row["peft"]["kept_bytes"]
    off, on = found["rows"]
    assert on["peft"]["kept_bytes"] < off["peft"]["kept_bytes"]
    kept = json.loads(rows.read_text())
    kept[0]["kept_ours_over_peft"] = 9.0
    rows.write_text(json.dumps(kept))
    assert run(memory, *words)["rows"][0]["kept_ours_over_peft"] == 9.0  # not measured again


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_sides_have_the_same_gradients(checkpointing, tiny_base, tmp_path):
    # At 64 px the innermost layers look at one place: no gradient for queries and keys, but for rounding.
    row = {
        "model": str(tiny_base), "resolution": 128, "precision": "fp32", "checkpointing": checkpointing, "rank": 2,
        "device": "cpu",
    }  # fmt: skip
    assert 0 <= memory.gradient_difference(row, tmp_path) < 1e-5


def test_a_real_step_grows_by_something(tiny_base):
    row = {
        "model": str(tiny_base), "resolution": 64, "precision": "fp32", "checkpointing": False, "rank": 2,
        "device": "cpu",
    }  # fmt: skip
    found = memory.one({"what": "peak", "side": "ours", "row": row})
    assert found["peak_bytes"] >= 0 and found["seconds"] > 0


def test_generate_times_every_way_of_mixing(tiny_base):
    words = ("--model", tiny_base, "--adapters", 3, "--rank", 2, "--turns", 2, "--grid-turns", 1, "--grid-steps", 1)
    found = run(generate, *words)
    ways = found["ways"]
    assert set(ways) == set(generate.WAYS)
    assert ways["base"]["over_base"]["median"] == 1
    # the same products, whether stacked or a pair each: what is counted tells that the adapters took part
    assert ways["base"]["gflop"] == ways["fused"]["gflop"] == ways["scales 0"]["gflop"] < ways["one"]["gflop"]
    assert ways["one"]["gflop"] < ways["unfused"]["gflop"] <= ways["a pair each"]["gflop"]
    assert found["grid"]["cells"] == generate.GRID


@pytest.mark.slow
def test_whole_runs_draw_and_write_on_both_sides(tiny_base, tmp_path):
    words = ("--model", tiny_base, "--resolution", 64, "--batch-size", 1, "--rank", 2, "--steps", 2, "--turns", 1)
    found = run(whole_run, *words, "--sampling-steps", 2)
    assert found["runs"]["reference"]["gflop"] > found["runs"]["ours"]["gflop"] > 0  # it encodes at every step
    assert found["reference_over_ours"]["median"] > 0


def test_data_counts_every_file_and_looks_at_the_memory(tiny_base, monkeypatch):
    monkeypatch.setattr(data, "SIDES", ((320, 240), (240, 320)))
    monkeypatch.setattr(data, "EVERY", 0.001)
    found = run(data, "--model", tiny_base, "--pictures", 20)
    assert len(found["cache_rates"]) == data.PARTS
    assert found["mib_while_scanning"] and found["mib_while_caching"]


def test_repeated_pictures_have_bytes_of_their_own_and_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SIDES", ((320, 240),))
    data.photographs(tmp_path / "pictures", 3)
    files = sorted((tmp_path / "pictures").iterdir())
    assert len({path.read_bytes() for path in files}) == len(files) == 3
    assert len({Image.open(path).convert("RGB").tobytes() for path in files}) == 1


@pytest.mark.slow
def test_scale_out_trains_in_one_process_and_in_two(tiny_base, pictures):
    words = ("--model", tiny_base, "--folder", pictures, "--processes", 1, 2, "--steps", 3, "--turns", 1)
    found = run(scale_out, *words, "--batch-size", 1)
    assert [row["processes"] for row in found["rows"]] == [1, 2]
    assert found["rows"][0]["efficiency"]["median"] == 1


@pytest.mark.slow
def test_start_waits_for_every_front_end():
    found = run(start, "--turns", 1)
    assert set(found["commands"]) == {*start.COMMANDS, start.PAGE}


def test_slow_imports_are_named_with_what_they_import():
    found = start.slow_imports(["-c", "import json"], least=0.0)
    assert found["json"] >= found["json.decoder"] > 0


def test_a_plot_shows_every_bar_and_is_no_part_of_the_command(tmp_path):
    made = plot.bars("three", "x", [plot.Bar("a", 1.0), plot.Bar("b", 2.0, (1.5, 2.5), 1.15, 1.02), plot.Bar("c", 0)])
    assert made.size == (plot.WIDTH, plot.TOP + 3 * plot.ROW + plot.FOOT)
    assert len(made.getcolors(1 << 20) or []) > 5
    words = ["--turns", "2", "--plot", "some.png", "--json"]
    assert report.command("benchmarks.start", words) == "python -m benchmarks.start --turns 2 --json"


def test_the_page_has_a_place_for_every_table():
    text = page.PAGE.read_text(encoding="utf-8")
    assert all(page.BEGIN.format(name) in text for name in page.TABLES)
