"""The third tab: prompt, adapters with a slider each, Create, and the pictures, which stay on disk."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import service
from sdlora.errors import SdloraError
from sdlora.generation.images import format_parameters, read_parameters
from sdlora.generation.samplers import NAMES
from sdlora.service import Request, Ticket
from sdlora.ui import markup
from sdlora.ui.desk import Desk, cached
from sdlora.ui.fields import DRAWING

ROWS = 8
NONE = ("none", "")
START = Request("")
"""What the fields hold at first."""
WORDS = {
    "queued": "Getting ready",
    "waiting": "Waiting",
    "loading": "Loading the base model",
    "drawing": "Drawing",
    "done": "Done",
    "cancelled": "Cancelled; what was finished is kept",
    "failed": "Failed",
}


@dataclass(frozen=True)
class Create:
    """The components that are wired or brought up to date."""

    prompt: gr.Textbox
    negative: gr.Textbox
    adapters: list[gr.Dropdown]
    scales: list[gr.Slider]
    count: gr.Slider
    seed: gr.Number
    base: gr.Dropdown
    sampler: gr.Dropdown
    steps: gr.Slider
    cfg: gr.Slider
    sizes: list[gr.Number]
    create: gr.Button
    cancel: gr.Button
    status: gr.HTML
    gallery: gr.Gallery
    parameters: gr.Textbox
    ticket: gr.State
    timer: gr.Timer

    @property
    def inputs(self) -> list[Any]:
        return [
            self.prompt, self.negative, self.count, self.seed, self.base, self.sampler, self.steps, self.cfg,
            *self.sizes, *self.adapters, *self.scales,
        ]  # fmt: skip

    @property
    def live(self) -> list[Any]:
        return [self.status, self.gallery, self.create, self.cancel, self.timer]


def build(desk: Desk, demo: gr.Blocks) -> Create:
    """Lay the tab out and wire it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            tab_inputs = _inputs()
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(elem_id="create-status")
            gallery = gr.Gallery(
                label="Pictures, the newest first", show_label=False, elem_id="creations", elem_classes="creations",
                interactive=False, object_fit="contain", columns=4, height="auto", buttons=["download", "fullscreen"],
            )  # fmt: skip
            parameters = gr.Textbox(
                label="Made from", lines=3, max_lines=8, visible=False, interactive=False, elem_id="parameters"
            )
    ticket, timer = gr.State(0), gr.Timer(0.7, active=False)
    tab = Create(**tab_inputs, status=status, gallery=gallery, parameters=parameters, ticket=ticket, timer=timer)
    _wire(desk, demo, tab)
    return tab


def _inputs() -> dict[str, Any]:
    prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt", placeholder="ohwx style, a red car on sand")
    negative = gr.Textbox(label="Negative prompt", info=DRAWING["negative"].help, elem_id="negative")
    adapters, scales = _rows()
    with gr.Row():
        count = gr.Slider(1, 16, START.count, step=1, label="Pictures")
        seed = gr.Number(START.seed, label="Seed", info="-1 draws one", precision=0, minimum=-1, elem_id="seed")
    with gr.Accordion("Advanced", open=False):
        base = gr.Dropdown(
            service.bases() or [START.base], value=START.base, label="Base model", allow_custom_value=True,
            elem_id="create-base",
        )  # fmt: skip
        sampler = gr.Dropdown(list(NAMES), value=START.sampler, label="Sampler", info=DRAWING["sampler"].help)
        steps = gr.Slider(1, 100, START.steps, step=1, label="Steps", info=DRAWING["steps"].help)
        cfg = gr.Slider(0, 30, START.cfg, step=0.5, label="CFG", info=DRAWING["cfg"].help)
        with gr.Row():
            sizes = [
                gr.Number(0, label=name, info="0: the model's own", precision=0, minimum=0)
                for name in ("Width", "Height")
            ]
    with gr.Row():
        create = gr.Button("Create", variant="primary", size="lg", elem_id="create-button")
        cancel = gr.Button("Cancel", variant="stop", size="lg", visible=False, elem_id="cancel-button")
    return {
        "prompt": prompt, "negative": negative, "adapters": adapters, "scales": scales, "count": count, "seed": seed,
        "base": base, "sampler": sampler, "steps": steps, "cfg": cfg, "sizes": sizes, "create": create,
        "cancel": cancel,
    }  # fmt: skip


def _rows() -> tuple[list[gr.Dropdown], list[gr.Slider]]:
    """Eight rows, of which as many are seen as are asked for: what they hold is kept as they come and go."""
    rows, adapters, scales = [], [], []
    for number in range(1, ROWS + 1):
        with gr.Row(visible=number == 1, elem_classes="adapter") as row:
            named: dict[str, Any] = {"label": f"Adapter {number}", "elem_id": f"adapter-{number}", "scale": 2}
            # Custom values, as gradio refuses every event of a page that has a name chosen that was deleted since.
            adapters.append(gr.Dropdown([NONE], value="", allow_custom_value=True, **named))
            scales.append(gr.Slider(-2, 2, 1.0, step=0.05, label=f"Scale {number}", scale=3, min_width=140))
        rows.append(row)
    shown = gr.State(1)
    with gr.Row():
        more = gr.Button("+ Adapter", size="sm", min_width=100, elem_id="more-adapters")
        fewer = gr.Button("− Adapter", size="sm", min_width=100, elem_id="fewer-adapters")
    for button, change in ((more, 1), (fewer, -1)):
        button.click(partial(_show, change), shown, [shown, *rows], show_progress="hidden", api_visibility="private")
    return adapters, scales


def _show(change: int, shown: int) -> list[Any]:
    shown = min(ROWS, max(1, shown + change))
    return [shown, *(gr.update(visible=number < shown) for number in range(ROWS))]


def _wire(desk: Desk, demo: gr.Blocks, tab: Create) -> None:
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [tab.create.click, tab.prompt.submit], partial(_create, desk), tab.inputs,
        [tab.ticket, tab.status, tab.create, tab.cancel, tab.timer], **hidden,
    )  # fmt: skip
    tab.cancel.click(partial(_cancel, desk), tab.ticket, None, **hidden)
    tab.timer.tick(partial(_poll, desk), tab.ticket, tab.live, concurrency_limit=None, **hidden)
    demo.load(partial(_attach, desk), None, [tab.ticket, tab.gallery, tab.timer], **hidden)

    def tell(event: gr.SelectData) -> Any:  # Gradio finds the event by the annotation, which a partial hides.
        return _tell(desk, Path(event.value["image"]["path"]).name)

    tab.gallery.select(tell, None, tab.parameters, **hidden)
    for row in tab.adapters:
        row.input(partial(_base_of, desk), row, tab.base, **hidden)


def _create(desk: Desk, *values: Any) -> list[Any]:
    """Queue a request. What was filled in stays as it is, whatever comes of it."""
    prompt, negative, count, seed, base, sampler, steps, cfg, width, height = values[:10]
    adapters, scales = values[10 : 10 + ROWS], values[10 + ROWS :]
    try:
        request = Request(
            prompt or "", negative or "", int(-1 if seed is None else seed), int(steps), float(cfg),
            int(width) if width else None, int(height) if height else None, int(count), sampler, base or "",
        )  # fmt: skip
        chosen = [(name, float(scale)) for name, scale in zip(adapters, scales, strict=True) if name]
        ticket = desk.create(request, chosen)
    except SdloraError as error:
        return [gr.skip(), markup.note([str(error)], "bad"), gr.skip(), gr.skip(), gr.skip()]
    return [
        ticket.number, told(desk, ticket), gr.update(interactive=False), gr.update(visible=True), gr.Timer(active=True),
    ]  # fmt: skip


def _cancel(desk: Desk, number: int) -> None:
    desk.creator.cancel(number)


def _attach(desk: Desk) -> list[Any]:
    """After a load: the pictures that there are, and the request that is under way."""
    ticket = desk.creator.newest()
    active = ticket is not None and not ticket.ended
    return [ticket.number if ticket and active else 0, pictures(desk), gr.Timer(active=active)]


def _poll(desk: Desk, number: int) -> list[Any]:
    """Where the request stands; at its end the pictures are shown and the timer rests."""
    ticket = desk.creator.ticket(number)
    if ticket is None or ticket.ended:
        said = told(desk, ticket) if ticket else ""
        return [said, pictures(desk), gr.update(interactive=True), gr.update(visible=False), gr.Timer(active=False)]
    return [told(desk, ticket), gr.skip(), gr.update(interactive=False), gr.update(visible=True), gr.skip()]


def told(desk: Desk, ticket: Ticket) -> str:
    """Where a request stands, in plain words."""
    if ticket.ended:
        kind = {"done": "good", "failed": "bad"}.get(ticket.state, "info")
        count = f"{len(ticket.paths)} picture{'s' if len(ticket.paths) != 1 else ''}"
        first = {"failed": "", "done": f"{count} drawn."}.get(ticket.state, f"{WORDS[ticket.state]}.")
        return markup.note([first, ticket.message], kind)
    ahead = desk.creator.ahead(ticket.number)
    words = f"Waiting its turn: {ahead} before this one" if ticket.state == "queued" and ahead else ""
    words = words or ticket.message or WORDS[ticket.state]
    if ticket.state == "drawing" and ticket.total:
        words = f"{ticket.message or WORDS['drawing']}: step {ticket.done} of {ticket.total}"
    return markup.drawing(words, ticket.done / ticket.total if ticket.total else None)


def pictures(desk: Desk) -> list[str]:
    """The newest pictures as the gallery takes them: whole files, with their parameters in them."""
    return [cached(path) for path in desk.creations()]


def _tell(desk: Desk, name: str) -> Any:
    """What the chosen picture was made from."""
    try:
        known = read_parameters(service.creations_folder(desk.data_dir) / name)
    except SdloraError:
        known = None
    return gr.update(value=format_parameters(known) if known else "", visible=known is not None)


def _base_of(desk: Desk, name: str) -> Any:
    """An adapter brings the base that it was trained on."""
    base = next((adapter.base for adapter in desk.look().adapters if adapter.name == name), "")
    return base or gr.skip()


def adapter_updates(desk: Desk, first: str | None, seen: dict[str, Any]) -> list[Any]:
    """New choices for the eight rows and the base where the adapters changed; the newest fills an empty first row."""
    known = desk.look().adapters
    names = tuple(adapter.name for adapter in known)
    if seen.get("adapters") == names:
        return [gr.skip()] * (ROWS + 1)
    seen["adapters"] = names
    choices = [NONE, *((name, name) for name in names)]
    take = bool(known) and not first
    rows = [gr.update(choices=choices) for _ in range(ROWS)]
    if take:
        rows[0] = gr.update(choices=choices, value=names[0])
    return [*rows, known[0].base if take else gr.skip()]
