"""The measurement of the ladder: a row a rung, and a table of what was found."""

import pytest

from benchmarks import rungs


@pytest.fixture
def config(pictures):
    return rungs.configure(rungs.arguments(["--batch-size", "2"]), "pocket", pictures)


def test_each_row_is_one_rung_further(config):
    rows = rungs.climb(config, on_card=True)
    names = [name for name, _ in rows]
    assert names[:4] == [
        "as it is", "parts that do not train wait in main memory", "batch 1 x 2", "gradient checkpointing"
    ]  # fmt: skip
    last = rows[-1][1]
    assert last.train.offload and last.train.gradient_checkpointing and last.model.quantize
    assert "wait" not in " ".join(name for name, _ in rungs.climb(config))  # on a CPU there is nowhere to wait


def test_a_row_measures_what_is_alive_and_counts_the_same(config, tmp_path):
    found = rungs.row(config, tmp_path, steps=1)
    assert found["weights_bytes"] + found["forward_keeps_bytes"] <= found["alive_bytes"]
    assert found["counted_bytes"] == pytest.approx(found["alive_bytes"], rel=0.05)
    text = rungs.table({"model": "pocket", "config": {}, "rows": [{"rung": "as it is", **found}]})
    assert f"{found['alive_bytes'] / 1e6:.0f}" in text
