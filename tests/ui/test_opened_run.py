"""A run that is opened in the library."""

from sdlora.api.training import prepare_run
from sdlora.ui.page import _show_opened
from tests.support.page_calls import build_page


def test_a_run_opened_in_the_library_is_the_one_that_is_chosen(app, configure):
    """The page's timer shows the run that is chosen: another one would take the place of the opened run at once."""
    for name in ("first", "second"):
        prepare_run(configure(), name, app.data_dir)
    page = build_page(app)
    run, opened = page.train.run.run, page.library.opened
    values = {page.create.adapters[0]: None, page.seen: {}}
    for name in ("first", "second"):
        chosen = _show_opened(app, page, opened, {**values, opened: name})[run]
        assert chosen["value"] == name and set(chosen["choices"]) == {"first", "second"}
