"""Reading the figures of merged adapters, and that the default follows from those that are kept."""

import json

from benchmarks.mixing import RESULTS, WAYS, summary, table, verdict
from sdlora.api.editing import MergeSettings


def way(*weaker: float) -> dict:
    pairs = {f"{n} and {n}": {"weaker": value, "style in both": 1.0} for n, value in enumerate(weaker)}
    return {"pairs": pairs, "summary": summary(pairs)}


def test_a_gain_counts_in_every_pair_and_beyond_the_range_of_the_sum():
    ways = {"sum": way(0.5, 0.6), "better": way(0.7, 0.75), "little": way(0.55, 0.65), "mixed": way(0.45, 0.95)}
    found = verdict(ways)
    assert {name: each["beyond"] for name, each in found.items()} == {
        "sum": False, "better": True, "little": False, "mixed": False,
    }  # fmt: skip
    assert found["better"]["gains"] == [0.2, 0.15] and ways["better"]["summary"]["weaker"]["least"] == 0.7
    assert len(table(ways)) == 5 and "0.72" in table(ways)[2]


def test_the_default_is_the_way_that_the_kept_figures_show_to_be_better():
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    gains = kept["gain_over_sum"]
    assert gains.keys() == WAYS.keys()
    better = [name for name, each in gains.items() if each["beyond"]]
    assert better == [] and MergeSettings().method == "sum"
    for name, figures in kept["ways"].items():
        assert figures["summary"] == summary(figures["pairs"]), name
