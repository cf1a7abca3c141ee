"""The page: a header, four tabs, and the timer that brings what is seen up to date."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.errors import ConfigError, SdloraError
from sdlora.ui import compare_panel, create_tab, endpoints, images_tab, library_tab, page_html, train_panel, train_tab
from sdlora.ui.app_state import ACTIVE, AppState
from sdlora.ui.create_tab import CreateTab
from sdlora.ui.library_tab import LibraryTab
from sdlora.ui.listeners import EVERY, HIDDEN, PRIVATE, show_hidden_progress_on
from sdlora.ui.project_panel import ImagesTab
from sdlora.ui.run_html import SCRIPT
from sdlora.ui.run_panel import run_panel_updates
from sdlora.ui.train_tab import TrainTab

BUSY_SECONDS, IDLE_SECONDS = 1.5, 5.0
"""Between two looks, while something trains and otherwise."""
CSS = Path(__file__).with_name("page.css")
KEEP_SECONDS = 86_400
"""How long copies of pictures stay in the page's cache."""
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
    """Calm colours, and the fonts that the reader's own system has: nothing is asked of another host."""
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
        block_title_padding="0", block_title_text_weight="600",
    )  # fmt: skip


def build(app: AppState) -> gr.Blocks:
    """The page over ``app``, ready to be launched."""
    with gr.Blocks(title="sdlora", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        with gr.Row(elem_id="top", equal_height=True):
            header = gr.HTML(page_html.header("", None, ""), elem_id="header")
            stop = gr.Button(
                "Stop", size="sm", variant="stop", visible=False, scale=0, min_width=80, elem_id="stop-now"
            )
        seen = gr.State({})
        timer = gr.Timer(BUSY_SECONDS)
        with gr.Tabs() as tabs:
            with gr.Tab("1 · Pictures", id="pictures"):
                tab = images_tab.build(app, demo)
            with gr.Tab("2 · Train", id="train"):
                training = train_tab.build(app, demo, tab)
            with gr.Tab("3 · Create", id="create"):
                drawing = create_tab.build(app, demo)
                compare_panel.build(app, demo, drawing)
            with gr.Tab("4 · Library", id="library") as shelves:
                kept = library_tab.build(app, shelves, tabs)
        _keep_fresh(app, demo, timer, seen, header, stop, training, drawing, kept)
        _lead_on(app, tabs, tab, training, drawing)
        stop.click(partial(_stop, app), None, stop, **PRIVATE)
        endpoints.build(app)
        show_hidden_progress_on(demo, header)
    return demo


def _keep_fresh(
    app: AppState,
    demo: gr.Blocks,
    timer: gr.Timer,
    seen: gr.State,
    header: gr.HTML,
    stop: gr.Button,
    training: TrainTab,
    drawing: CreateTab,
    kept: LibraryTab,
) -> None:
    """One timer for everyone: it re-attaches a reloaded page to what runs, as the run's folder tells it.

    Gradio makes each output of a call anew, changed or not, so the timer has few: what changes with every step. Where
    anything else has news, it says so, and the page asks for all. It goes past Gradio's queue, which costs a second
    request. No output of it is an input of it: Gradio would keep a copy of each such output for every call.
    """
    live = training.live
    inputs = [live.run, drawing.adapters[0], seen]
    outputs = [seen, header, stop, timer, *live.outputs, *drawing.adapters, drawing.base]
    often = [seen, header, live.status]
    news = gr.HTML(elem_id="news")  # The browser is not told when a call past the queue changes a gr.State.
    options = {**HIDDEN, "concurrency_limit": None}
    places = [outputs.index(component) for component in often]
    timer.tick(partial(_glance, app, places), inputs, [news, *often], queue=False, **options)
    news.change(partial(_look, app), inputs, outputs, **options)
    news.change(partial(train_panel.told, app), training.inputs, training.form.told, **EVERY)  # A run that ended tells.
    demo.load(partial(_look_anew, app), inputs[:2], outputs, **options)
    live.run.input(partial(_look, app), inputs, outputs, **options)
    kept.on_open.then(partial(_look, app), [kept.opened, *inputs[1:]], outputs, **options)


def _lead_on(app: AppState, tabs: gr.Tabs, tab: ImagesTab, training: TrainTab, drawing: CreateTab) -> None:
    """The short way: from the pictures to a training, and from what it gave to a picture, a click each."""
    begun = [tab.train_message, *training.outputs, tabs]
    tab.train.click(partial(_train_these, app), training.inputs, begun, show_progress_on=tab.train_message, **PRIVATE)
    base = training.form.base
    base.change(lambda chosen: chosen, base, tab.base, **EVERY)  # The doctor judges the pictures for it.
    live = training.live
    drawn = [training.form.message, *drawing.drawn, tabs]
    live.draw.click(partial(_draw_with, app, len(drawn)), live.run, drawn, **HIDDEN)


def _train_these(app: AppState, *values: Any) -> list[Any]:
    """Train with what the tab Train holds, and show it; what is missing is said where the button is."""
    message, run = train_tab.train(app, *values)
    return ["", "", run, gr.Tabs(selected="train")] if not message else [message, gr.skip(), run, gr.skip()]


def _draw_with(app: AppState, outputs: int, name: str) -> list[Any]:
    """Draw a prompt of the run's previews with its adapter, on the tab Create."""
    run = app.run(name)
    try:
        if run is None:
            raise ConfigError("This run is gone; choose another.")
        prompts = run.config.sample.prompts
        begun = create_tab.draw_with(app, name, prompts[0] if prompts else run.config.data.trigger)
        return ["", *begun, gr.Tabs(selected="create")]
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), *[gr.skip()] * (outputs - 1)]


def _stop(app: AppState) -> Any:
    """Stop what runs now, or take out of the queue what comes first."""
    current = app.refresh().current
    if current is not None:
        app.queue.stop(current)
        app.refresh()
    return gr.update(interactive=False)


def _glance(app: AppState, places: list[int], run: str | None, first: str | None, seen: dict[str, Any]) -> list[Any]:
    """What changed in the outputs at ``places``; if there is more, nothing but a new number, which asks for all."""
    found = _look(app, run, first, seen)
    rest = [value for place, value in enumerate(found) if place not in places]
    if any(value != gr.skip() for value in rest):
        return [str(time.monotonic_ns()), *(gr.skip() for _ in places)]
    return [gr.skip(), *(found[place] for place in places)]


def _look_anew(app: AppState, run: str | None, first: str | None) -> list[Any]:
    return _look(app, run, first, {})


def _look(app: AppState, run: str | None, first: str | None, seen: dict[str, Any]) -> list[Any]:
    """New values for whatever changed since ``seen``."""
    look, seen = app.snapshot(), dict(seen)
    view = app.run_view(look.current) if look.current else None
    name = look.current.name if look.current else ""
    head = page_html.header(name, view, look.state)
    pace = BUSY_SECONDS if look.state in ACTIVE else IDLE_SECONDS
    active = look.state in ACTIVE
    news = [
        _changed(seen, "header", head),
        gr.update(visible=active, interactive=True) if _changed(seen, "active", active) == active else gr.skip(),
        gr.Timer(pace) if _changed(seen, "pace", pace) == pace else gr.skip(),
        *run_panel_updates(app, run, seen),
        *create_tab.adapter_updates(app, first, seen),
    ]
    return [seen, *news]


def _changed(seen: dict[str, Any], what: str, value: Any) -> Any:
    if seen.get(what) == value:
        return gr.skip()
    seen[what] = value
    return value
