"""The report as one HTML file: safe, small, complete, and legible with many runs."""

import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from sdlora.evaluation.report import FOLDER, SHEET
from sdlora.reports import thumbnails
from sdlora.reports.comparison import compare
from sdlora.reports.html_report import RUNS_AS_COLUMNS, comparison_html, report_html
from sdlora.reports.line_chart import MOST_LINES
from sdlora.storage.run_folder import Run
from tests.support.recorded_runs import recorded_run


class Elements(HTMLParser):
    """Names of all elements, their attributes, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def noisy_sheet(run, side=1100):
    """Give the run an evaluation sheet that JPEG cannot shrink much."""
    folder = run.folder / FOLDER
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / SHEET)


def test_a_report_is_one_file_without_script_that_loads_nothing(record):
    run = record("one")
    noisy_sheet(run, 300)
    page = report_html(compare([run, record("two", adapter__rank=8)]))
    elements = Elements(page)
    assert elements.open == [] and page.startswith("<!doctype html>")
    assert not elements.of("script") and not elements.of("link")
    assert len(elements.of("img")) == 3 and all(image["src"].startswith("data:image/") for image in elements.of("img"))
    assert all(image["alt"] for image in elements.of("img"))
    assert "default-src 'none'" in page and not re.search(r"(?:href|src)=['\"]?https?:", page)
    charts = [svg for svg in elements.of("svg") if svg.get("role") == "img"]
    assert len(charts) == 4 and all("one" in svg["aria-label"] and "two" in svg["aria-label"] for svg in charts)


def test_what_strangers_wrote_is_shown_as_text(record):
    evil = "<img src=x onerror=alert(1)>'\"</style>{style}"
    run = record("one", prompt=evil, data__trigger=evil, sample__prompts=[evil])
    renamed = Run(run.folder.rename(run.folder.with_name("<b>'\"x")))
    (renamed.folder / FOLDER).mkdir()
    (renamed.folder / FOLDER / "evaluation.json").write_text(evil)
    page = report_html(compare([renamed, record("two")]))
    elements = Elements(page)
    assert elements.open == [] and not elements.of("b")
    assert all(not image.get("onerror") for image in elements.of("img"))
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_damaged_pictures_are_left_out(record):
    run = record("one")
    run.sample(4, 0).write_bytes(b"no picture")
    assert not Elements(report_html(compare([run]))).of("img")


def test_links_of_a_strangers_run_are_not_followed(record, tmp_path):
    run = record("one")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    run.sample(4, 0).unlink()
    run.sample(4, 0).symlink_to(secret)
    assert not Elements(report_html(compare([run]))).of("img")


def test_the_page_gets_tables_and_charts_without_pictures(record):
    elements = Elements(comparison_html(compare([record("one"), record("two")])))
    assert elements.open == [] and not elements.of("img") and elements.of("table")


def test_a_run_without_steps_says_so(configure, tmp_path):
    page = report_html(compare([Run.create(tmp_path / "runs", "new", configure())]))
    assert "No run has done a step yet" in page and "Settings that differ" not in page


def test_equal_settings_are_told(record):
    assert "<h2>Settings that differ</h2><p>None.</p>" in report_html(compare([record("one"), record("two")]))


def test_many_runs_are_rows_and_their_curves_are_limited(configure, tmp_path):
    runs = [recorded_run(tmp_path / "runs", f"run-{n}", configure(train__seed=n)) for n in range(MOST_LINES + 3)]
    assert len(runs) > RUNS_AS_COLUMNS
    page = report_html(compare(runs))
    assert f"Curves of the first {MOST_LINES} of {len(runs)} runs" in page
    heads = [th for th in Elements(page).of("th") if th["scope"] == "row"]
    assert len(heads) == 2 * len(runs)
    legend = page[page.index("report-legend") :].split("</ul>")[0]
    assert legend.count("<li>") == MOST_LINES


def test_pictures_are_scaled_down_until_all_fit(record, monkeypatch):
    run = record("one")
    noisy_sheet(run)
    record_of = compare([run]).runs[0]
    sizes = []
    for runs in (1, 20, 200):
        sheet, previews = thumbnails.run_thumbnails(record_of, runs)
        found = [len(one.uri) * 3 // 4 for one in (sheet, *previews) if one]
        assert sum(found) <= thumbnails.MOST_BYTES / runs * 1.01 + 50
        sizes.append(sum(found))
    assert sizes[0] > sizes[1] >= sizes[2]


def test_a_figure_that_no_run_has_is_no_row(record):
    assert "take step" not in comparison_html(compare([record("one")]))


def test_notes_are_shown(record):
    run = record("one")
    assert "named more than once" in comparison_html(compare([run, run]))
