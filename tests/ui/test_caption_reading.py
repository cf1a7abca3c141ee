"""The page's view of a caption as the model reads it, and of the tags of a project."""

import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.ui import caption_cards, images_tab
from sdlora.ui.build_config import data_settings
from sdlora.ui.caption_reading import reading_html
from tests.support.images import noise_image


@pytest.fixture
def project(tmp_path):
    for number in range(3):
        noise_image(96, 96, number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red house in a hat")
    project = Project(tmp_path, "mystyle")
    project.set_info(ProjectInfo("style", "ohwx"))
    project.add(sorted(path for path in tmp_path.iterdir() if path.is_file()))
    return project


def reading(project, text, **changes):
    changes = {f"data.{name}": value for name, value in changes.items()}
    return reading_html(project, project.images()[0], text, data_settings(project, "pocket", changes), "pocket")


def test_it_shows_what_is_added_and_how_many_tokens_are_read(project):
    text = reading(project, "a <b>dog</b>", caption_suffix=", 4k")
    assert "ohwx, </i>a &lt;b&gt;dog&lt;/b&gt;<i" in text and "14 tokens of 75" in text
    assert "ohwx , a < b > dog".replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<i title='put there by the settings'>ohwx</i>" in reading(project, "")


def test_it_shows_where_chunks_split(project):
    text = reading(project, ", ".join(f"red tag {number}" for number in range(40)))
    assert "read in 4 chunks of up to 75" in text and text.count("<li><code>") == 4


def test_it_shows_what_may_be_left_out_and_what_wildcards_draw(project):
    text = reading(project, "a, {b|c}\nd", wildcards=True, tag_dropout=0.2, caption_dropout=0.1)
    assert "One of 3 is drawn" in text and "ohwx, a, c <span" in text and "left out in 20% of the steps" in text
    assert "In 10% of the steps nothing at all is read" in text
    assert "One of many is drawn at each step. Some of them:" in reading(project, "{a|b}" * 40, wildcards=True)


def test_settings_that_are_wrong_are_left_to_the_form(project):
    assert reading(project, "a", tag_dropout=7) == reading(project, "a")


def test_a_card_shows_it_for_what_is_being_typed(project):
    image = project.images()[0]
    assert "typed" in caption_cards._reading(project, image, "just typed", "pocket", {})
    assert "there is no" in caption_cards._reading(project, image, "just typed", "no such base", {})


def test_the_check_counts_the_tags_and_follows_the_settings_of_the_train_tab(app, project):
    findings, tags = images_tab._check(app, "mystyle", "pocket", {}, [], lambda *arguments, **options: None)
    assert (
        "<th scope='row'>house</th><td><i style='width:100%'></i><span>3</span>" in tags
        and "no meaning for: hat (nearest: umbrella)" in findings
    )
    project.write_caption(project.images()[0], "a {red|blue} house")
    findings, _ = images_tab._check(app, "mystyle", "pocket", {}, [], lambda *arguments, **options: None)
    assert "choices such as" in findings
    drawn = {"data.wildcards": True}
    findings, tags = images_tab._check(app, "mystyle", "pocket", drawn, [], lambda *arguments, **options: None)
    assert "choices such as" not in findings and "<th scope='row'>blue</th>" in tags
