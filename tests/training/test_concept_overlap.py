"""The penalty on what the adapter's updates for two concepts have in common."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdlora.config import TrainConfig
from sdlora.data.settings import Concept
from sdlora.errors import ConfigError
from sdlora.events import Notice
from sdlora.training import trainer
from sdlora.training.concept_overlap import concept_overlap, concept_texts, reading_updates
from tests.support.training import assert_equal_files, events_of, train_in_process


def test_it_is_the_mean_squared_cosine_of_the_changes_to_each_two_texts():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 9, 6, generator=generator)
    updates = [
        (torch.randn(5, 2, generator=generator), torch.randn(2, 6, generator=generator)),
        (torch.randn(4, 3, generator=generator), torch.randn(3, 6, generator=generator)),
    ]
    means = [rows[0, 1:3].mean(0), rows[1, 1:5].mean(0), rows[2, 1:2].mean(0)]
    expected = [
        torch.nn.functional.cosine_similarity(up @ down @ means[i], up @ down @ means[j], dim=0) ** 2
        for up, down in updates
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert concept_overlap(updates, rows, [2, 4, 1]).item() == pytest.approx(torch.stack(expected).mean().item())


def test_an_adapter_at_its_start_has_no_overlap_and_a_finite_gradient():
    up, down = torch.zeros(4, 2, requires_grad=True), torch.ones(2, 6, requires_grad=True)
    overlap = concept_overlap([(up, down)], torch.randn(2, 5, 6), [2, 2])
    overlap.backward()
    assert overlap.item() == 0 and up.grad.isfinite().all() and down.grad.isfinite().all()


def test_the_words_are_those_of_concepts_with_a_trigger():
    concepts = (
        Concept(folder="a", trigger="sks", class_name="cat"),
        Concept(folder="b"),
        Concept(folder="c", trigger="x"),
    )
    assert concept_texts(concepts) == ["sks cat", "x"]


def test_an_adapter_without_layers_that_read_text_is_refused():
    with pytest.raises(ConfigError, match=r"loss.concept_overlap: no LoRA layer reads text"):
        reading_updates([])


@pytest.fixture
def two(configure, tmp_path: Path):
    """A config for a short run of two styles."""
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        for index in range(3):
            picture = Image.linear_gradient("L").resize((64, 64)).point(lambda v, s=80 * number + index: v // 2 + s)
            picture.convert("RGB").save(tmp_path / name / f"{index}.png")

    def make(**overrides: Any) -> TrainConfig:
        concepts = [{"folder": str(tmp_path / name), "trigger": name} for name in ("first", "second")]
        values = configure(**overrides).model_dump(mode="json", exclude_none=True)
        return TrainConfig.parse(values, "test", {"concepts": concepts})

    return make


@pytest.mark.parametrize("rate", [1e-2, 0.0], ids=["text encoder trains", "texts from the cache"])
def test_it_lowers_the_overlap_and_a_resumed_run_keeps_its_bits(two, rate, tmp_path, monkeypatch):
    loops = []

    class Kept(trainer.TrainLoop):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            loops.append(self)

    monkeypatch.setattr(trainer, "TrainLoop", Kept)

    def overlap_of(**settings: Any) -> float:
        _, _, output = train_in_process(
            two(train__text_encoder_learning_rate=rate, **settings), tmp_path / str(len(loops))
        )
        loop, texts = loops[-1], ["first", "second"]
        with torch.no_grad():
            rows = loop.state.encode(texts, 1).text
        lengths = [len(loop.state.family.token_ids_without_special(text)) for text in texts]
        outputs.append(output)
        return concept_overlap(reading_updates(loop.trained.parts), rows, lengths).item()

    outputs: list[Any] = []
    plain, penalised = overlap_of(), overlap_of(loss__concept_overlap=1.0)
    assert penalised < 0.8 * plain
    config = two(train__text_encoder_learning_rate=rate, loss__concept_overlap=1.0)
    train_in_process(config, tmp_path / "parts", stop_after=3)
    _, _, parts = train_in_process(config, tmp_path / "parts")
    assert_equal_files(outputs[1].adapter, parts.adapter)


def test_a_run_of_one_concept_is_told_that_it_is_not_used(configure, tmp_path):
    _, events, _ = train_in_process(configure(loss__concept_overlap=0.1, train__steps=1), tmp_path / "run")
    told = [event.message for event in events_of(Notice, events)]
    assert "loss.concept_overlap is not used: fewer than two concepts have a trigger" in told
