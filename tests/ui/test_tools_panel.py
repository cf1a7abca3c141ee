"""The library's tools, without a browser: what their fields stand for, and how what is under way is told and ended."""

import time
from pathlib import Path

import gradio as gr
import pytest

from sdlora.api.adapter_jobs import ToolJob
from sdlora.editing.merge_methods import METHODS
from sdlora.errors import BusyError, ConfigError
from sdlora.events import Progress
from sdlora.formats import write_adapter
from sdlora.ui import adapter_detail, bake_panel, job_widget, library_html, tools_panel
from sdlora.ui.adapter_rows import adapter_rows
from sdlora.ui.merge_fields import DEFAULTS, MERGE_METHODS, USES, merge_fields, overlap_html, sentence
from tests.support.adapters import random_adapter
from tests.support.tiny_models import write_tiny_adapter as adapter


class Slow:
    """A job of three stages, which remembers whether it was stopped, or left."""

    def __init__(self):
        self.stopped = self.left = False

    def __iter__(self):
        try:
            yield from (Progress(phase="adding up layers", done=number, total=3) for number in (1, 2, 3))
        finally:
            self.left = True

    def stop(self):
        self.stopped = True


def test_one_person_has_one_job_at_a_time_and_can_end_it(app):
    first, second = Slow(), Slow()
    updates = job_widget.follow(app, "me", first)
    assert "Starting" in next(updates)
    with pytest.raises(BusyError, match="already running"):
        next(job_widget.follow(app, "me", second))
    assert "Starting" in next(job_widget.follow(app, "somebody else", second))
    app.cancel_job("me")
    assert first.stopped and not second.stopped
    next(updates)
    updates.close()  # As when the page is closed.
    assert first.left
    assert len(list(job_widget.follow(app, "me", Slow()))) == 4
    app.cancel_job("me")  # Nothing is under way.


def test_progress_tells_how_much_is_done_and_what_is_left_of_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tell = job_widget.JobProgressHtml()
    assert "Reading" in (text := tell(Progress(phase="reading"))) and "aria-valuenow" not in text
    assert "left" not in tell(Progress(phase="adding up layers", done=1, total=10))
    now = 104.0
    text = tell(Progress(phase="adding up layers", done=4, total=10))
    assert "Adding up layers: 4 of 10 · 8 s left" in text and "aria-valuenow='40'" in text


def test_progress_of_a_download_is_told_in_bytes():
    text = job_widget.JobProgressHtml()(Progress(phase="downloading", done=2**30, total=4 * 2**30, unit="bytes"))
    assert "Downloading: 1.00 GiB of 4.00 GiB" in text and "aria-valuenow='25'" in text


def test_a_download_of_hours_keeps_nobody_from_the_tools(app):
    visitor = gr.Request(session_hash="me")
    downloads = job_widget.follow(app, job_widget.DOWNLOADS.key(visitor), Slow())
    assert "Starting" in next(downloads)
    assert "Starting" in next(job_widget.follow(app, job_widget.TOOLS.key(visitor), Slow()))


def test_the_fields_say_how_much_is_kept():
    with gr.Blocks():
        fields = tools_panel._cut("test", tools_panel.ALL, 32, "fp32")
        rows = adapter_rows("test", 4, 2)

    def cut(*values):
        return fields.limit(dict(zip((fields.how, fields.rank, fields.share), values, strict=True)))

    assert cut(tools_panel.ALL, 8, 95) == {"rank": None, "energy": None}
    assert cut(tools_panel.RANK, 8, 95) == {"rank": 8, "energy": None}
    assert cut(tools_panel.SHARE, 8, 95) == {"rank": None, "energy": 0.95}
    with pytest.raises(ConfigError, match="Give a rank"):
        cut(tools_panel.RANK, None, 95)
    names, scales = ["one", "", "two", "three"], [1.0, 1.0, 0.5, 2.0]
    values = dict(zip([*rows.adapters, *rows.scales], names + scales, strict=True))
    assert rows.chosen(values, 3) == [("one", 1.0), ("two", 0.5)]


def combine_fields():
    rows, base = adapter_rows("combine", 6, 2), tools_panel._base("combine")
    cut = tools_panel._cut("combine", tools_panel.ALL, 32, "fp32")
    return tools_panel.CombineFields(rows, base, cut, tools_panel._name("combine", "x"), merge_fields())


def shrink_fields():
    cut = tools_panel._cut("shrink", tools_panel.RANK, 4, "fp16")
    name = tools_panel._name("shrink", "x")
    return tools_panel.ShrinkFields(gr.Dropdown(value=""), tools_panel._base("shrink"), cut, name)


def extract_fields():
    cut, name = tools_panel._cut("extract", tools_panel.RANK, 4, "fp16"), tools_panel._name("extract", "x")
    models = (gr.Dropdown(value="pocket", allow_custom_value=True), gr.Dropdown(value="", allow_custom_value=True))
    return tools_panel.ExtractFields(*models, cut, gr.Dropdown(["linear"], value="linear"), gr.Checkbox(True), name)


def start(begin, app, fields, changed=()):
    """Start a job with what the fields hold, but for what is changed."""
    return begin(app, fields, {**{field: field.value for field in fields.inputs}, **dict(changed)})


def test_what_is_missing_is_said_in_a_sentence_before_anything_starts(app):
    adapter(app.library.folder / "one.safetensors")
    with gr.Blocks():
        combined, shrunk, extracted = combine_fields(), shrink_fields(), extract_fields()
        bake = bake_panel.BakeFields(gr.Dropdown(value=""), adapter_rows("bake", 3, 3), {}, gr.Radio(), gr.Radio())
    first = combined.rows.adapters[0]
    with pytest.raises(ConfigError, match="at least two"):
        start(tools_panel._start_combining, app, combined, {first: "one"})
    with pytest.raises(ConfigError, match="no adapter 'gone'"):
        start(tools_panel._start_combining, app, combined, {first: "gone"})
    with pytest.raises(ConfigError, match="Choose the adapter"):
        start(tools_panel._start_shrinking, app, shrunk)
    with pytest.raises(ConfigError, match="Choose both models"):
        start(tools_panel._start_extracting, app, extracted)
    with pytest.raises(ConfigError, match="Choose the base model"):
        start(bake_panel._start, app, bake, {bake.rows.adapters[0]: "one"})


def test_a_method_brings_its_own_options_and_no_others(app):
    for name in ("one", "two"):
        adapter(app.library.folder / f"{name}.safetensors")
    with gr.Blocks():
        fields = combine_fields()
    first, second = fields.rows.adapters[:2]
    chosen = {first: "one", second: "two", fields.cut.how: tools_panel.RANK}
    for method in MERGE_METHODS:
        job = start(tools_panel._start_combining, app, fields, {**chosen, fields.method.method: method})
        given = {name: job.request[name] for name in ("density", "seed", "protect")}
        assert job.request["method"] == method and job.request["rank"] == 32
        assert {name for name, value in given.items() if value is not None} == {
            name for name, users in USES.items() if method in users
        }
    exactly = {**chosen, fields.method.method: "ties", fields.cut.how: tools_panel.ALL}
    with pytest.raises(ConfigError, match="its result fills every rank; say how much to keep"):
        start(tools_panel._start_combining, app, fields, exactly)
    with pytest.raises(ConfigError, match="density"):
        start(
            tools_panel._start_combining, app, fields,
            {**chosen, fields.method.method: "ties", fields.method.options["density"]: 2.0},
        )  # fmt: skip
    for method, row in METHODS.items():
        assert {name: value for name, value in DEFAULTS.items() if method in USES[name]} == row.options
    assert "Choose a rank or a share" in sentence("dare") and "Choose" not in sentence("sum")


def test_the_comparison_needs_two_and_its_figures_unfold(app):
    adapter(app.library.folder / "one.safetensors")
    with gr.Blocks():
        fields = combine_fields()
    values = {field: field.value for field in fields.compared}
    with pytest.raises(ConfigError, match="at least two adapters to compare"):
        tools_panel._start_comparing(app, fields, {**values, fields.rows.adapters[0]: "one"})
    row = {"block": "<mid>", "layers": 3, "cosine": 0.125, "inputs": 0.5, "outputs": -0.001, "shared": 1.0}
    html = overlap_html([{"adapters": ["a", "b"], "sentence": "a & b differ.", "blocks": [row]}])
    assert "a &amp; b differ." in html and "&lt;mid&gt;" in html and "<details>" in html
    assert "<td>0.12</td><td>0.50</td><td>0.00</td><td>3</td>" in html


def test_the_base_is_asked_for_where_an_adapter_depends_on_it(app):
    app.library.folder.mkdir(parents=True)
    for name in ("lora", "dora"):
        write_adapter(random_adapter(name), app.library.folder / f"{name}.safetensors")
    with gr.Blocks():
        rows, fields = adapter_rows("test", 2, 2).adapters, shrink_fields()
        detail = adapter_detail.build_detail(app)

    def is_required(*names):
        return tools_panel._show_base(app, rows, dict(zip(rows, names, strict=True)))["visible"]

    assert (is_required("lora", ""), is_required("lora", "dora")) == (False, True)
    for name, needed in (("lora", False), ("dora", True)):
        assert adapter_detail.show_adapter(app, detail, name)[detail.base]["visible"] is needed
        job = start(tools_panel._start_shrinking, app, fields, {fields.adapter: name, fields.base: "pocket"})
        assert job.request["base"] == ("pocket" if needed else "")


def test_a_single_file_can_become_one(app, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    single = bake_panel._kinds(app, str(tmp_path / "model.safetensors"))
    assert (single["visible"], single["value"]) == (True, bake_panel.FILE)
    assert bake_panel._kinds(app, "pocket")["value"] == bake_panel.FOLDER
    assert bake_panel._kinds(app, None)["visible"] is False


def test_a_file_that_a_job_writes_is_moved_to_the_pages_cache(app, monkeypatch):
    job = ToolJob("bake", output=None)

    def write(self):
        Path(self.request["output"]).write_bytes(b"model")
        yield Progress(phase="writing")

    monkeypatch.setattr(ToolJob, "__iter__", write)
    fetched = job_widget.FileJob(job, "output", "model.zip")
    assert [stage.phase for stage in fetched] == ["writing"]
    assert Path(fetched.file).read_bytes() == b"model"
    assert not Path(job.request["output"]).parent.exists()


def test_the_layers_are_a_table_whose_names_are_text():
    page = library_html.layers([["unet.<b>", 1.5, None, 2.0, 3]], "/tmp/a b.png")
    assert "<b>" not in page and "–" in page and "a%20b.png" in page
