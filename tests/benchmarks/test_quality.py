"""The README's figures are those in ``benchmarks/results``."""

import json

import pytest

from benchmarks.page import RESULTS

README = RESULTS.parents[1] / "README.md"


def kept(trial):
    return json.loads((RESULTS / f"quality-{trial}.json").read_text(encoding="utf-8"))


def style_figures():
    style = kept("style")
    return f"{style['train_seconds']:.0f} seconds", f"{style['share_of_gap']:.0%}", f"{style['clip_t_kept']:.0%}"


def subject_figures():
    trial = kept("subject")
    return tuple(
        f"{trial[name][what]:.2f}"
        for what in ("likeness_with_trigger", "likeness_of_the_class")
        for name in ("base", "with prior", "without prior")
    )


@pytest.mark.parametrize("figures", [style_figures, subject_figures])
def test_the_readme_quotes_the_kept_figures(figures):
    text = README.read_text(encoding="utf-8")
    assert [figure for figure in figures() if figure not in text] == []
