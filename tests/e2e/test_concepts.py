"""A second project beside the open one: two concepts of one run, from the page to the adapter."""

import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.formats.header_summary import read_header_summary
from sdlora.storage.run_folder import Run
from tests.support.browser import PICTURES, wait_until
from tests.support.page_server import ROOT, PageServer

SUBJECT = sorted((ROOT / "sample_data" / "subject").iterdir())
FEW = 2


@pytest.fixture(scope="module")
def two_projects(tmp_path_factory):
    """A server whose data folder has a subject, and a style that is opened first."""
    data_dir = tmp_path_factory.mktemp("two projects")
    for name, info, files in (
        ("cat", ProjectInfo("subject", "sks", "cat"), SUBJECT),
        ("glass", ProjectInfo("style", "ohwx style"), PICTURES),
    ):
        project = Project(data_dir, name)
        project.add(files)
        project.set_info(info)
    server = PageServer(data_dir)
    yield server
    server.stop()


def test_another_project_is_trained_into_the_same_adapter(two_projects, visit):
    visitor = visit(two_projects.address)
    assert visitor.value("#project") == "glass"
    visitor.tab("Train")
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", str(FEW))
    visitor.fill("#set-sample-steps", "1")
    visitor.fill("#set-prior-count", "1")
    visitor.fill("#set-prior-steps", "1")
    visitor.choose("#train-together", "cat")
    visitor.see("ohwx style and sks have about the same share", "#train-summary")
    prompts = wait_until(lambda: [p for p in _previews(visitor) if "sks cat" in p] and _previews(visitor))
    assert "ohwx style" in prompts[0] and "sks cat" in prompts[1]
    visitor.click("#train-button")
    visitor.see(f"Finished: {FEW} steps", "#run-status")
    run = Run(two_projects.data_dir / "runs" / "glass")
    assert [concept.trigger for concept in run.config.all_concepts] == ["ohwx style", "sks"]
    assert read_header_summary(run.adapter).triggers == ("ohwx style", "sks")


def test_the_project_that_is_opened_is_no_concept_beside_itself(two_projects, visit):
    visitor = visit(two_projects.address)
    visitor.tab("Train")
    visitor.choose("#train-together", "cat")
    visitor.see("ohwx style and sks", "#train-summary")
    visitor.tab("Pictures")
    visitor.choose("#project", "cat")
    visitor.page.get_by_label("Caption of 006.png").wait_for()
    visitor.tab("Train")
    visitor.see("each of 6 pictures is seen", "#train-summary")
    assert visitor.page.locator("#train-together .token").count() == 0


def _previews(visitor):
    return [visitor.page.get_by_label(f"Preview {number}").input_value() for number in (1, 2)]
