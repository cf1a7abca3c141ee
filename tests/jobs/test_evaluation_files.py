"""Evaluation of adapter files: steps from their metadata, and what is measured without training images."""

import pytest

from sdlora.evaluation.evaluate import WITHOUT_IMAGES
from sdlora.evaluation.report import read_evaluation
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.formats import write_adapter
from sdlora.jobs.evaluation_files import AdapterFiles, FileEvaluationJob, prior_weight, read_files, steps_of
from sdlora.jobs.evaluation_tool import evaluate_files
from tests.support.adapters import random_lora
from tests.support.tiny_models import write_tiny_clip


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(("100", "300"), [100, 300]), (("300", "100"), [300, 100]), (("100", "100"), [1, 2]), (("100", ""), [1, 2]),
     (("1e3", "5"), [1, 2]), (("9" * 30, "5"), [1, 2])],
)  # fmt: skip
def test_files_have_the_steps_of_their_metadata_or_their_order(steps, expected):
    assert steps_of([{"ss_steps": text} for text in steps]) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [({"ss_num_reg_images": "0", "ss_prior_loss_weight": "1.0"}, 0.0), ({"ss_prior_loss_weight": "1.0"}, 0.0),
     ({"ss_num_reg_images": "20", "ss_prior_loss_weight": "0.5"}, 0.5),
     ({"ss_num_reg_images": "20", "ss_prior_loss_weight": "much"}, 0.0)],
)  # fmt: skip
def test_the_weight_of_class_images_counts_where_there_were_some(header, expected):
    assert prior_weight(header) == expected


def test_without_images_only_what_needs_none_is_measured_and_nothing_is_proposed(tmp_path, tiny_base):
    clip = str(write_tiny_clip(tmp_path / "clip"))
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        write_adapter(random_lora(), path, format="kohya", dtype="fp32")
    files = AdapterFiles(
        [(path.stem, step, path) for step, path in enumerate(paths, 1)], str(tiny_base), trigger="sks",
        class_name="cat", kind="subject",
    )  # fmt: skip
    settings = EvaluationSettings(scales=(1.0,), seeds=2, steps=1, encoder=clip, clip=clip, device="cpu")
    job = FileEvaluationJob(files, settings, tmp_path / "data")
    assert read_files(job.request["files"]) == files
    evaluate_files(job.request, lambda event: None)
    found = read_evaluation(files.folder(tmp_path / "data"))
    assert [set(each.figures) for each in found.candidates] == [{"prompts", "drift", "diversity"}] * 2
    assert found.proposal.chosen is None and found.proposal.reasons == (WITHOUT_IMAGES,)
    assert files.folder(tmp_path) == files.folder(tmp_path) != AdapterFiles(files.files[:1], "x").folder(tmp_path)
