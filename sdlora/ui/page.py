"""The page: a header, four tabs, and the timer that refreshes them."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.data.concepts import trigger_words
from sdlora.errors import ConfigError, SdloraError
from sdlora.ui import (
    compare_panel,
    create_form,
    create_tab,
    endpoints,
    evaluation_panel,
    images_tab,
    library_tab,
    page_html,
    run_panel,
    setting_fields,
    train_panel,
    train_tab,
)
from sdlora.ui.app_state import ACTIVE, AppState
from sdlora.ui.create_tab import CreateTab
from sdlora.ui.library_tab import LibraryTab
from sdlora.ui.listeners import EVERY, HIDDEN, PRIVATE, PROGRESS, Changes, Values, show_hidden_progress_on
from sdlora.ui.page_blocks import PageBlocks
from sdlora.ui.project_panel import ImagesTab
from sdlora.ui.run_html import SCRIPT
from sdlora.ui.train_tab import TrainTab

BUSY_SECONDS, IDLE_SECONDS = 1.5, 5.0
"""Seconds between two refreshes while something trains, and otherwise."""
QUIET = ("body_text_color_subdued", "input_placeholder_color")
"""Colours of lesser texts, which Gradio's Soft theme sets at a contrast of 2.6 on white."""
CSS = Path(__file__).with_name("page.css")
KEEP_SECONDS = 86_400
"""Seconds for which copies of images stay in the page's cache."""
HEAD = (
    """<script>
document.addEventListener("keydown", (event) => {
  const button = document.querySelector("#create-button");
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && button?.offsetParent) button.click();
});
document.addEventListener("change", ({ target }) => {
  if (target.type === "file" && target.webkitdirectory)
    window.sdloraFolder = [...target.files].map((file) => file.webkitRelativePath);
}, true);
</script>"""
    + SCRIPT
)


def theme() -> gr.themes.Base:
    """Return calm colours and the fonts of the reader's system, so that nothing is loaded from another host."""
    fonts = [gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    return gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=mono
    ).set(
        block_shadow="none", block_border_width="1px", input_shadow="none", button_secondary_shadow="none",
        input_border_width="1px", input_border_color="*neutral_200", input_border_color_dark="*neutral_700",
        **{f"block_{part}_background_fill{dark}": "none" for part in ("title", "label") for dark in ("", "_dark")},
        **{f"block_{part}_text_color": "*neutral_700" for part in ("title", "label")},
        **{f"block_{part}_text_color_dark": "*neutral_200" for part in ("title", "label")},
        **{name: "*neutral_500" for name in QUIET}, **{f"{name}_dark": "*neutral_400" for name in QUIET},
        block_title_padding="0", block_title_text_weight="600",
    )  # fmt: skip


@dataclass(frozen=True)
class Page:
    """The header, the tabs, and what keeps them fresh."""

    header: gr.HTML
    stop: gr.Button
    seen: gr.State
    """Versions of what this visitor's page shows, as ``Changes`` has them."""
    timer: gr.Timer
    news: gr.HTML
    """Changes when the page has to ask for everything; a ``gr.State`` that a call past the queue sets tells nobody."""
    tabs: gr.Tabs
    images: ImagesTab
    train: TrainTab
    create: CreateTab
    library: LibraryTab

    @property
    def inputs(self) -> set[Block]:
        """Components that a refresh reads."""
        return {self.train.run.run, self.create.adapters[0], self.seen}

    @property
    def outputs(self) -> list[Block]:
        """Components that a refresh may update."""
        live = self.train.run.outputs
        return [
            self.seen,
            self.header,
            self.stop,
            self.timer,
            *live,
            *self.create.adapters,
            self.create.base,
            self.library.news,
        ]

    @property
    def frequent(self) -> list[Block]:
        """Outputs that change with every step of a training."""
        return [self.seen, self.header, self.train.run.status]


def build(app: AppState) -> gr.Blocks:
    """Return the page of ``app``, ready to be launched."""
    with PageBlocks(title="sdlora", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        page = lay_out(app, demo)
        _wire_refresh(app, demo, page)
        _wire_shortcuts(app, page)
        endpoints.build(app)
        show_hidden_progress_on(demo, page.header)
    return demo


def lay_out(app: AppState, demo: gr.Blocks) -> Page:
    """Lay out the header and the tabs; each tab wires itself."""
    with gr.Row(elem_id="top", equal_height=True):
        header = gr.HTML(page_html.header("", None, ""), elem_id="header")
        stop = gr.Button("Stop", size="sm", variant="stop", visible=False, scale=0, min_width=80, elem_id="stop-now")
    library_news = gr.HTML(elem_id="library-news")
    with gr.Tabs() as tabs:
        with gr.Tab("1 · Pictures", id="pictures"):
            images = images_tab.build(app, demo)
        with gr.Tab("2 · Train", id="train"):
            train = train_tab.build(app, demo, images)
        with gr.Tab("3 · Create", id="create"):
            create = create_tab.build(app, demo)
            compare_panel.build(app, demo, create)
        with gr.Tab("4 · Library", id="library") as tab:
            library = library_tab.build(app, tab, tabs, library_news)
    news = gr.HTML(elem_id="news")
    return Page(
        header, stop, gr.State({}), gr.Timer(BUSY_SECONDS), news, tabs, images, train, create, library
    )  # fmt: skip


def _wire_refresh(app: AppState, demo: gr.Blocks, page: Page) -> None:
    """Refresh all visitors by timers; a reloaded page finds running jobs by their folders.

    Gradio serializes every output of a call, changed or not, so the timer has few: what changes with every step. If
    anything else has changed, it sets ``Page.news``, and the page asks for everything. The timer bypasses Gradio's
    queue, which would cost a second request. No output of it but ``seen`` is one of its inputs, as Gradio would keep a
    copy of each such output for every call.
    """
    options = {**HIDDEN, "concurrency_limit": None}
    run, outputs = page.train.run.run, page.outputs
    full = partial(_refresh, app, page, run)
    page.timer.tick(
        partial(_refresh_often, app, page), page.inputs, [page.news, *page.frequent], queue=False, **options
    )
    page.news.change(full, page.inputs, outputs, **options)
    form = page.train.form  # A run that has ended changes the estimate.
    page.news.change(partial(train_panel.describe, app, form), form.inputs, form.description, **EVERY)
    demo.load(partial(_refresh_all, app, page), page.inputs - {page.seen}, outputs, **options)
    run.input(full, page.inputs, outputs, **options)
    opened = page.library.opened
    shown = page.library.on_open.then(
        partial(_show_opened, app, page, opened), page.inputs - {run} | {opened}, outputs, **options
    )  # fmt: skip
    evaluation_panel.open_from(app, page.train.run.evaluation, shown, opened, page.library.evaluates)


def _wire_shortcuts(app: AppState, page: Page) -> None:
    """Lead from the pictures to a training, and from its adapter to an image, with one click each."""
    images, form, live = page.images, page.train.form, page.train.run
    images.train.click(
        partial(_train_these, app, page), form.inputs | images.at_training,
        [images.train_message, form.message, live.run, page.tabs, *images.versions],
        show_progress_on=images.train_message, **PRIVATE,
    )  # fmt: skip
    form.base.change(lambda base: base, form.base, images.base, **EVERY)  # The pictures are checked for this base.
    form.together.change(lambda names: names or [], form.together, images.together, **EVERY)
    fields = {name: field for name, field in form.settings.items() if name.startswith("data.")}
    gr.on(
        [field.change for field in fields.values()], partial(_data_changes, fields), {*fields.values()},
        images.settings, **EVERY,
    )  # fmt: skip
    for download in form.base_models.downloads:
        download.success(app.base_update, None, page.create.base, **HIDDEN)
    live.generate.click(
        partial(_generate_with, app, page), live.run, [form.message, *page.create.generated, page.tabs], **HIDDEN
    )  # fmt: skip
    page.stop.click(partial(_stop, app), None, page.stop, **PRIVATE)


def _data_changes(fields: dict[str, Any], values: Values) -> dict[str, Any]:
    """Return the changed settings of the pictures, for which the tab Pictures checks and shows them."""
    return setting_fields.parse_changes({name: values[field] for name, field in fields.items()})


def _train_these(app: AppState, page: Page, values: Values, progress: gr.Progress = PROGRESS) -> Values:
    """Train with what the form of the tab Train says, and show that tab; say here what is missing."""
    updates = train_tab.train(app, page.train, values, progress)
    if page.train.run.run not in updates:
        return {page.images.train_message: updates.pop(page.train.form.message), **updates}
    return {page.images.train_message: "", **updates, page.tabs: gr.Tabs(selected="train")}


def _generate_with(app: AppState, page: Page, name: str) -> Values:
    """Generate an image of the run's first preview prompt with its adapter, on the tab Create."""
    message, run = page.train.form.message, app.run(name)
    try:
        if run is None:
            raise ConfigError("This run is gone; choose another.")
        prompts = run.config.sample.prompts
        prompt = next(iter(prompts or trigger_words(run.config.all_concepts)), "")
        begun = create_tab.generate_with(app, page.create, name, prompt)
        return {message: "", **begun, page.tabs: gr.Tabs(selected="create")}
    except SdloraError as error:
        return {message: page_html.note([str(error)], "bad")}


def _stop(app: AppState) -> Any:
    """Stop the current run, or take it out of the queue."""
    current = app.refresh().current
    if current is not None:
        app.queue.stop(current)
        app.refresh()
    return gr.update(interactive=False)


def _refresh_often(app: AppState, page: Page, values: Values) -> Values:
    """Update what changes often; if there is more, only set ``Page.news``."""
    updates = _refresh(app, page, page.train.run.run, values)
    if updates.keys() - set(page.frequent):
        return {page.news: str(time.monotonic_ns())}
    return updates


def _refresh_all(app: AppState, page: Page, values: Values) -> Values:
    """Update everything on a page that was just loaded."""
    return _refresh(app, page, page.train.run.run, {**values, page.seen: {}})


def _show_opened(app: AppState, page: Page, opened: gr.State, values: Values) -> Values:
    """Show the run that was opened in the library, and choose it on the tab Train: the next refresh shows that one."""
    updates = _refresh(app, page, opened, values)
    if app.run(values[opened]) is not None:
        updates[page.train.run.run] = gr.update(
            choices=list(app.snapshot().runs), value=values[opened], visible=True
        )  # fmt: skip
    return updates


def _refresh(app: AppState, page: Page, run: Block, values: Values) -> Values:
    """Update whatever changed since ``Page.seen``; ``run`` has the name of the run to show."""
    now, changes = app.snapshot(), Changes(values[page.seen])
    active = now.state in ACTIVE
    header = page_html.header(
        now.current.name if now.current else "", app.run_view(now.current) if now.current else None, now.state
    )  # fmt: skip
    pace = BUSY_SECONDS if active else IDLE_SECONDS
    changes.add("header", page.header, header, lambda: header)
    changes.add("active", page.stop, active, lambda: gr.update(visible=active, interactive=True))
    changes.add("pace", page.timer, pace, lambda: gr.Timer(pace))
    run_panel.refresh(app, page.train.run, values[run], changes)
    create_form.refresh_adapters(app, page.create.form, values[page.create.adapters[0]], changes)
    library_tab.refresh(app, page.library, changes)
    return {page.seen: changes.seen, **changes.updates}
