"""The page as a whole, as it is before anybody has opened it."""

from collections import Counter

import gradio as gr
import pytest

from sdlora.ui import page
from sdlora.ui.app_state import AppState


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    app = AppState(tmp_path_factory.mktemp("data"))
    yield page.build(app)
    app.close()


def test_every_field_for_text_starts_as_text(blocks):
    """Gradio gives ``None`` for one without a value, which no handler takes for what a person wrote."""
    fields = [block for block in blocks.blocks.values() if isinstance(block, gr.Textbox)]
    assert len(fields) > 50
    assert [field.label for field in fields if field.interactive is not False and field.value is None] == []


def test_of_the_listeners_of_an_event_one_waits_at_most(blocks):
    """Two that do wake each other for ever: see ``sdlora/ui/wiring.py``."""
    waiting = Counter(
        target for listener in blocks.fns.values() if listener.trigger_mode == "always_last"
        for target in listener.targets
    )  # fmt: skip
    assert len(waiting) > 50
    assert [target for target, number in waiting.items() if number > 1] == []
