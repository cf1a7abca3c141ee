"""The page as a whole, as it is before anybody has opened it."""

import gradio as gr

from sdlora.ui import page
from sdlora.ui.desk import Desk


def test_every_field_for_text_starts_as_text(tmp_path):
    """Gradio gives ``None`` for one without a value, which no handler takes for what a person wrote."""
    desk = Desk(tmp_path)
    try:
        fields = [block for block in page.build(desk).blocks.values() if isinstance(block, gr.Textbox)]
    finally:
        desk.close()
    assert len(fields) > 50
    assert [field.label for field in fields if field.interactive is not False and field.value is None] == []
