"""The panel Compare: what it asks for, refuses, and shows."""

from dataclasses import replace

import pytest
from PIL import Image

from sdlora.api.generation import GenerationRequest, JobStatus
from sdlora.api.grids import list_grids
from sdlora.api.training import prepare_run
from sdlora.formats import write_adapter
from sdlora.generation import xyz_grid
from sdlora.ui import adapter_rows, create_tab, page_html
from sdlora.ui import compare_panel as panel
from sdlora.ui.app_state import AppState
from tests.support.adapters import random_lora
from tests.support.page_calls import build_compare_panel, form_values


class Submitted:
    """In the drawing process's place: keeps what is asked for."""

    def __init__(self):
        self.requests = []

    def submit(self, request):
        self.requests.append(request)
        return self.status(0)

    def status(self, number):
        return JobStatus(1, self.requests[-1], "drawing") if self.requests else None

    def open(self):
        return [self.status(1)]

    def cancel(self, number):
        pass

    def queued_before(self, number):
        return 0

    def newest(self):
        return None


@pytest.fixture
def app(configure, tmp_path):
    app = AppState(tmp_path)
    app.inference = Submitted()
    run = prepare_run(configure(sample__prompts=["<b>a</b> house"]), "glass", tmp_path)
    for step in (2, 4):
        write_adapter(random_lora(seed=step), run.checkpoint(step))
    write_adapter(random_lora(seed=4), run.adapter)
    return app


@pytest.fixture
def built(app):
    return build_compare_panel(app)


def begin(app, tab, parts, subject, axes):
    """Press Create grid with a subject and the kinds and values of three axes."""
    values = {**form_values(tab.form, seed=7, steps=2), parts.subject: subject}
    for kind, text, axis in zip(parts.kinds, parts.values, axes, strict=True):
        values |= dict(zip((kind, text), axis, strict=True))
    return panel._begin(app, parts, tab.form, values)


def test_the_fields_become_a_grid_for_the_inference_process(app, built):
    begin(app, *built, "glass", [("scale", "0-1 [3]"), ("checkpoint", ""), ("", "")])
    [request] = app.inference.requests
    grid = xyz_grid.read_grid(list_grids(app.data_dir)[0])
    assert (len(grid.cells), request.count, grid.subject) == (6, 6, "glass")
    assert grid.base == request.base == app.run("glass").config.model.base


def test_an_adapter_brings_what_its_run_says_of_their_base(configure, tmp_path):
    app = AppState(tmp_path)
    app.inference = Submitted()
    overrides = {"prediction_type": "v_prediction", "zero_terminal_snr": "on"}
    config = configure(**{f"model__{name}": value for name, value in overrides.items()}, model__variant="fp16")
    run = prepare_run(config, "fast", tmp_path)
    write_adapter(random_lora(), run.checkpoint(2))
    write_adapter(random_lora(), run.adapter)
    base = config.model.base
    answer = GenerationRequest(prompt="a", base=base, base_settings={"zero_terminal_snr": "off"})
    assert app.with_adapters(GenerationRequest(prompt="a", base=base), [("fast", 1.0)]).model == config.model
    assert app.with_adapters(GenerationRequest(prompt="a", base=base), [("fast-000002", 1.0)]).model == config.model
    assert app.with_adapters(answer, [("fast", 1.0)]).base_settings == {
        **overrides,
        "variant": "fp16",
        "zero_terminal_snr": "off",
    }
    assert app.with_adapters(GenerationRequest(prompt="a", base=base), []).base_settings == {}
    assert app.with_adapters(GenerationRequest(prompt="a", base="pocket"), [("fast", 1.0)]).base_settings == {}
    tab, parts = build_compare_panel(app)
    create_tab.generate_with(app, tab, "fast", "a red car")
    panel._pick_best(app, parts, "fast")
    begin(app, tab, parts, "fast", [("scale", "0, 1"), ("", ""), ("", "")])
    assert [request.model for request in app.inference.requests] == [config.model] * 3


@pytest.mark.parametrize(
    ("subject", "axes", "message"),
    [
        ("", [("", ""), ("", ""), ("", "")], "Choose what the columns"),
        ("", [("scale", "0, 1"), ("", ""), ("", "")], "choose the adapter"),
        ("glass", [("scale", "<i>"), ("", ""), ("", "")], "&lt;i&gt;"),
        ("gone", [("scale", "0, 1"), ("", ""), ("", "")], "There is no adapter"),
    ],
)
def test_what_cannot_be_compared_is_said_and_nothing_is_queued(app, built, subject, axes, message):
    tab, parts = built
    assert message in begin(app, tab, parts, subject, axes)[parts.status]
    assert app.inference.requests == [] and list_grids(app.data_dir) == []


def test_one_click_queues_the_grid_to_pick_the_best_from_and_a_click_shows_its_picture(app, built):
    _, parts = built
    panel._pick_best(app, parts, "glass")
    [folder] = list_grids(app.data_dir)
    grid = xyz_grid.read_grid(folder)
    Image.new("RGB", (64, 64)).save(folder / "0-001-003.png")
    updates = panel._poll(app, parts, 1, (folder.name, -1, ""))
    shown, table = updates[parts.shown], updates[parts.table]
    assert shown == (folder.name, 1, "") and "1 of 8 pictures" in updates[parts.status]
    assert table.count("data-cell") == 1 and table.count("class='hole'") == 7
    assert "<b>" not in table and "&lt;b&gt;a&lt;/b&gt; house" in table
    chosen = panel._choose(app, parts, shown, "0-001-003.png")
    assert "glass-000004:1.2" in chosen[parts.picture] and chosen[parts.name]["value"] == "glass-best"
    assert "Saved as mine, with the scale 1.2" in panel._save(app, chosen[parts.shown], "mine")
    assert adapter_rows.preferred_scale(app, "mine") == 1.2
    assert "there already" in panel._save(app, chosen[parts.shown], "mine")
    assert "no such" not in page_html.grid_table(grid, folder, "0-001-003.png")


def test_a_grid_that_is_being_made_is_not_taken_for_the_tabs_own_request(app, built):
    tab, parts = built
    panel._pick_best(app, parts, "glass")
    app.inference.newest = lambda: replace(app.inference.status(1), number=9)
    assert create_tab._attach(app, tab, 24)[tab.number] == 0


def test_the_adapter_of_the_form_is_compared_unless_another_one_is_picked(app, configure):
    run = prepare_run(configure(), "stone", app.data_dir)
    write_adapter(random_lora(seed=5), run.adapter)
    app.refresh()
    chosen = {
        case: panel._subjects(app, *case)["value"]
        for case in (("stone", False, "glass"), ("stone", True, "glass"), ("gone", True, "glass"), (None, False, None))
    }
    assert chosen[("stone", False, "glass")] == "glass" and chosen[("stone", True, "glass")] == "stone"
    assert chosen[("gone", True, "glass")] == chosen[(None, False, None)] == "stone"
