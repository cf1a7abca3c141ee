"""Class pictures are kept for as long as everything that decides them stays what it was."""

from types import SimpleNamespace

import pytest
from PIL import Image

from sdlora.data.dataset import Example
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.generation.studio import Studio
from sdlora.training.precompute import prepare_class_images
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from tests.support.tiny_models import write_tiny_sd1

PRIOR = {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 2, "prior__steps": 2}


@pytest.fixture(scope="module")
def family(tiny_base):
    return load_family(Model(base=str(tiny_base)))


@pytest.fixture
def requests(monkeypatch):
    """A studio that records its requests, one entry an image, and returns blank images."""
    calls = []

    def generate(studio, prompt, settings, **others):
        chosen = {name: getattr(settings, name) for name in ("negative", "sampler", "steps", "cfg")} | others
        calls.append({"prompt": prompt, "base": studio.family.source, **chosen})
        return [Image.new("RGB", (chosen["width"], chosen["height"]))]

    monkeypatch.setattr(Studio, "generate", generate)
    return calls


@pytest.fixture
def use(configure, tmp_path, requests):
    """Get the class pictures of a run, and say what had to be drawn for it."""

    def run(family, size=64, precision="fp32", caption="sks, a red house", **settings):
        config = configure(**PRIOR | settings)
        job = TrainJob(**dict(config), output=RunPaths(tmp_path), cache=tmp_path)
        distributed = SimpleNamespace(rank=0, count=1, precision=precision, barrier=lambda: None, any_process=bool)
        requests.clear()
        examples = prepare_class_images(job, distributed, family, size, [Example(tmp_path / "a.png", caption, 64, 64)])
        assert len(examples) == config.prior.count
        return list(requests)

    return run


def test_class_pictures_are_drawn_as_the_settings_say(use, family):
    settings = {"negative": "ugly", "sampler": "Euler", "steps": 3, "cfg": 2.5, "seed": 9}
    generated = use(family, size=100, **{f"prior__{name}": value for name, value in settings.items()})
    size = {"width": 64, "height": 64}  # 100 px, in steps of the VAE's 8 times the UNet's 8
    expected = {"prompt": "a house", "base": family.source, "clip_skip": 1}
    assert generated == [{**expected, **settings, **size, "seed": seed} for seed in (9, 10)]


def test_class_pictures_show_what_wildcards_can_read(use, family, monkeypatch):
    monkeypatch.setitem(PRIOR, "prior__class_prompt", "")
    made = use(family, data__wildcards=True, prior__count=4, caption="sks, a {red|blue} house\nsks, a tree")
    assert [call["prompt"] for call in made] == ["a red house", "a blue house", "a tree", "a red house"]


CHANGES = [
    ("prior__cfg", 3.0), ("prior__negative", "blurry"), ("prior__sampler", "Euler"), ("prior__steps", 3),
    ("prior__class_prompt", "a hut"), ("prior__seed", 5), ("size", 128), ("precision", "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
def test_class_pictures_are_made_anew_where_what_decides_them_changes_and_kept_else(use, family, name, value):
    assert len(use(family)) == 2
    assert use(family) == []
    assert len(use(family, **{name: value})) == 2
    assert use(family) == []
    assert use(family, **{name: value}) == []


def test_another_base_makes_its_own_class_pictures(use, family, tmp_path):
    use(family)
    other = load_family(Model(base=str(write_tiny_sd1(tmp_path / "other", seed=1))))
    assert [call["base"] for call in use(other)] == [str(tmp_path / "other")] * 2
    assert use(family) == []


def test_what_decides_no_class_picture_makes_none_anew(use, family):
    use(family)
    assert use(family, prior__weight=0.5, train__seed=3, adapter__rank=2, data__flip=True) == []
    assert [call["seed"] for call in use(family, prior__count=3)] == [2]
