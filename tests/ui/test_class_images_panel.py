"""The fold of class pictures: what a finished job shows."""

from types import SimpleNamespace

import gradio as gr
import pytest

from sdlora.ui import class_images_panel, job_widget
from tests.support.images import noise_image


@pytest.fixture
def panel():
    with gr.Blocks():
        widgets = [job_widget.job_widget(name, name) for name in ("show", "make")]
        return class_images_panel.ClassImagesPanel(*widgets, gr.Gallery())


def test_pictures_are_shown_with_their_prompts_and_where_they_lie(panel, tmp_path):
    noise_image().save(tmp_path / "a.png")
    images = [[str(tmp_path / "a.png"), "a <b>cat</b>"], [str(tmp_path / "gone.png"), "a cat"]]
    result = {"count": 3, "missing": 1, "folders": [str(tmp_path)], "images": images}
    shown = class_images_panel._finish(panel, panel.show, SimpleNamespace(result=result, notices=["of 2, the first"]))
    assert [prompt for _, prompt in shown[panel.gallery]["value"]] == ["a <b>cat</b>"]
    status = shown[panel.show.status]
    assert "2 of 3 class pictures made." in status and "makes the other 1" in status and "of 2, the first" in status
    assert str(tmp_path) in status and shown[panel.make.status] == ""


def test_nothing_made_yet_shows_no_gallery(panel):
    result = {"count": 3, "missing": 3, "folders": [], "images": []}
    shown = class_images_panel._finish(panel, panel.show, SimpleNamespace(result=result, notices=[]))
    assert not shown[panel.gallery]["visible"] and "0 of 3" in shown[panel.show.status]
