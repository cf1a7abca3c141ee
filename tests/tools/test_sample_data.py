"""The sample sets: drawn by the script in the repository, held-out prompts not among them."""

import numpy as np
import pytest
from PIL import Image

from tools import make_sample_data as make


@pytest.mark.parametrize(("name", "count"), [("stained-glass", 10), ("neon", 10), ("subject", 6)])
def test_the_committed_sets_are_what_the_script_draws(tmp_path, name, count):
    make.write_sets(tmp_path)
    for part in (tmp_path, make.ROOT):
        assert len(list((part / name).glob("*.png"))) == len(list((part / name).glob("*.txt"))) == count
    for path in (tmp_path / name).glob("*.txt"):
        assert path.read_text() == (make.ROOT / name / path.name).read_text()
        generated, kept = (
            np.asarray(Image.open(p.with_suffix(".png")), float) for p in (path, make.ROOT / name / path.name)
        )
        # Another version of Pillow may round an edge differently; the picture stays the same.
        assert np.abs(generated - kept).mean() < 1.0


def test_no_test_prompt_is_in_the_set():
    assert not set(make.HELD_OUT_CONTENTS) & set(make.STYLE_CONTENTS)


def test_truth_is_drawn_for_plain_captions_only():
    (picture,) = make.draw_truth("neon", ["a red house on grass"], size=64)
    assert picture.size == (64, 64)
    with pytest.raises(ValueError, match="plain caption"):
        make.draw_truth("neon", ["a dragon"])
