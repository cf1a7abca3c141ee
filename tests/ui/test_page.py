"""The page as a whole, as it is before anybody has opened it."""

from collections import Counter

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from sdlora.data.projects import Project, ProjectInfo
from sdlora.ui import images_tab, page, project_panel
from sdlora.ui.app_state import AppState
from tests.support.page_calls import build_images_tab


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    app = AppState(tmp_path_factory.mktemp("data"))
    yield page.build(app)
    app.close()


def test_the_words_of_a_project_that_is_opening_are_not_given_to_the_one_before(tmp_path):
    """The fields of the page change one after the other, and each change is an event."""
    app = AppState(tmp_path)
    for name, info in {"a": ProjectInfo("style", "ohwx"), "b": ProjectInfo("subject", "sks", "cat")}.items():
        Project(tmp_path, name).set_info(info)
    tab = build_images_tab(app)
    shown = {tab.kind: "subject", tab.trigger: "zwx", tab.class_name: "cat", tab.open_project: "b", tab.edits: 0}
    project_panel._store_words(app, tab, {tab.project: "a", **shown})
    assert Project(tmp_path, "a").info == ProjectInfo("style", "ohwx")
    project_panel._store_words(app, tab, {tab.project: "b", **shown})
    assert Project(tmp_path, "b").info == ProjectInfo("subject", "zwx", "cat")
    app.close()


def test_a_subjects_class_is_asked_for_and_not_guessed(tmp_path):
    app = AppState(tmp_path)
    tab = build_images_tab(app)
    values = {
        tab.project: "a",
        tab.open_project: "a",
        tab.kind: "subject",
        tab.trigger: "ohwx style",
        tab.class_name: "",
    }
    changed = project_panel._change_kind(app, tab, values)
    assert changed[tab.trigger] == "sks" and "value" not in changed[tab.class_name]
    assert changed[tab.class_name]["visible"]
    app.close()


def test_an_empty_project_offers_the_sample_pictures(tmp_path):
    app = AppState(tmp_path)
    tab = build_images_tab(app)
    assert images_tab._status(app, "mystyle")[3]["visible"]
    values = {
        tab.project: "mystyle", tab.paths: "", tab.kind: "style", tab.trigger: "ohwx style", tab.class_name: "",
        tab.images_version: 0,
    }  # fmt: skip
    added = images_tab._add_samples(app, tab, values, lambda *arguments, **options: None)
    project = Project(tmp_path, "mystyle")
    assert len(project.images()) == 10 and all(map(project.caption, project.images()))
    assert added[tab.images_version] == 1 and "ready" in project.status()
    assert all(project.training_caption(path) == project.caption(path) for path in project.images())
    assert not images_tab._status(app, "mystyle")[3]["visible"]
    app.close()


def test_every_field_for_text_starts_as_text(blocks):
    """Gradio gives ``None`` for one without a value, which no handler takes for what a person wrote."""
    fields = [block for block in blocks.blocks.values() if isinstance(block, gr.Textbox)]
    assert len(fields) > 50
    assert [field.label for field in fields if field.interactive is not False and field.value is None] == []


def test_of_the_listeners_of_an_event_one_waits_at_most(blocks):
    """Two that do wake each other for ever: see ``sdlora/ui/listeners.py``."""
    waiting = Counter(
        target for listener in blocks.fns.values() if listener.trigger_mode == "always_last"
        for target in listener.targets
    )  # fmt: skip
    assert len(waiting) > 50
    assert [target for target, number in waiting.items() if number > 1] == []


def test_renders_run_one_at_a_time(blocks):
    """Visitors share what Gradio keeps between two of them."""
    renders = [listener for listener in blocks.fns.values() if listener.renderable is not None]
    assert len(renders) > 1
    assert {(render.concurrency_id, render.concurrency_limit) for render in renders} == {("render", 1)}


def test_an_element_may_be_added_while_a_render_walks_through_them(blocks):
    """The cards of the pictures do not appear after a render that failed."""
    visitor = SessionState(blocks).blocks_config
    number = len(visitor.blocks)
    for walked, element in enumerate(visitor.blocks.values()):
        visitor.blocks[-1 - walked] = element
    assert number > 500 and len(visitor.blocks) == 2 * number


@pytest.mark.parametrize(
    ("name", "background", "least"),
    [("body_text_color_subdued", "#ffffff", 4.5), ("body_text_color_subdued_dark", "block_background_fill_dark", 4.5),
     ("input_placeholder_color", "#ffffff", 4.5), ("input_placeholder_color_dark", "input_background_fill_dark", 4)],
)  # fmt: skip
def test_lesser_texts_can_be_read(name, background, least):
    """The ratio of WCAG 2.2, which asks for 4.5."""
    theme = page.theme()

    def luminance(color):
        while not color.startswith("#"):
            color = getattr(theme, color.removeprefix("*"))
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(name), luminance(background)))
    assert (light + 0.05) / (dark + 0.05) >= least
