"""Between two steps of a training: draw what lies in the mailbox of its device, with the model that is in training.

The training notices nothing but the time: its adapter is switched off meanwhile, and adapters, modes, gradients and
random states are afterwards as they were before, so that its result is the same to the bit.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import OutOfMemoryError, SdloraError
from sdlora.families.base_models import locate_base
from sdlora.families.settings import Model
from sdlora.formatting import format_bytes
from sdlora.generation.settings import Engine
from sdlora.inference.adapter_session import AdapterSession, error_sentence, save_generated, translate_error
from sdlora.inference.device_requests import DeviceRequests, ReceivedRequest, RequestStatus
from sdlora.inference.generation_request import GenerationRequest
from sdlora.storage.disk_usage import size_of
from sdlora.storage.gallery import images_folder

if TYPE_CHECKING:
    from sdlora.families.base import Family

BATCHES = (4, 2, 1)
"""Pictures at once on a graphics card: as many as fit. On a CPU, one."""
LONGEST_TURN = 10.0
"""Seconds that a training gets for itself after a drawing, at most; else as many as the drawing took."""
AFTERWARDS = "this is drawn after the training"


class Declined(Exception):
    """Why a request has to wait for the end of the training."""


class InlineInference:
    """Called between two steps. ``several`` tells that other processes take part in the training: then none waits."""

    def __init__(
        self, mailbox: DeviceRequests, data_dir: Path, model: Model, should_stop: Callable[[], bool], several: bool
    ):
        self.mailbox = mailbox
        self.data_dir = data_dir
        self.model = model
        self.should_stop = should_stop
        self.several = several
        self._passed: set[str] = set()
        """Requests that this training does not draw."""
        self._turn_ends = 0.0
        """Until when the training has its turn."""
        self._broken = False

    def __call__(self, family: "Family") -> None:
        """Serve the oldest request, if there is one. Whatever goes wrong with it costs the training nothing."""
        if self._broken or time.monotonic() < self._turn_ends:
            return
        try:
            if errand := self.mailbox.take(self._passed):
                begun = time.monotonic()
                self._serve(family, errand)
                now = time.monotonic()
                self._turn_ends = now + min(now - begun, LONGEST_TURN)
        except (SdloraError, OSError):
            traceback.print_exc()
            self._broken = True  # The mailbox cannot be read or written: who asked waits until the device is free.

    def _serve(self, family: "Family", errand: ReceivedRequest) -> None:
        try:
            batch = self._fitting(family, errand.request)
            answer = self._draw(family, errand, batch)
        except Declined as reason:
            self._pass(errand, f"{reason}; {AFTERWARDS}.")
        except Exception as error:
            known = translate_error(error)
            if isinstance(known, OutOfMemoryError):
                self._pass(errand, f"The training leaves too little memory for these pictures; {AFTERWARDS}.")
            else:
                errand.finish(RequestStatus("failed", error_sentence(known, "the run's log")))
        else:
            if answer is not None:
                errand.finish(answer)

    def _pass(self, errand: ReceivedRequest, reason: str) -> None:
        self._passed.add(errand.name)
        errand.give_back(reason)

    def _fitting(self, family: "Family", request: GenerationRequest) -> int:
        """How many pictures to draw at once. Raises Declined, or ModelError for a base that cannot be had at all."""
        from sdlora.generation import memory

        if self.several:
            raise Declined("A training in several processes draws nothing else")
        if next(family.vae.parameters()).device != family.device:
            raise Declined("A training that is short of memory draws nothing else")
        if locate_base(request.base) != locate_base(self.model.base):
            raise Declined(f"A training of another base ({self.model.base}) is using the device")
        same = {
            "base": self.model.base,
            "tokenizer": self.model.tokenizer,
        }  # Where a vocabulary lies changes no picture.
        if request.model.model_copy(update=same) != self.model:
            raise Declined("A training with other settings of this base is using the device")
        width, height = request.width or family.native_size, request.height or family.native_size
        sizes = BATCHES if family.device.type == "cuda" else (1,)
        mixed = sum(size_of(Path(adapter.path).resolve()) for adapter in request.adapters)
        free, wanted = memory.free_bytes(family.device), 0
        side = None if request.engine_settings.vae_tiling == "off" else family.tile_size
        for batch in (min(size, request.count) for size in sizes):
            wanted = memory.generation_bytes(family, width, height, batch, request.cfg > 1, side, mixed)
            if wanted <= free:
                return batch
        short = f"{format_bytes(wanted)} are needed and {format_bytes(free)} free"
        raise Declined(f"The training leaves too little memory for a picture of {width}x{height} ({short})")

    def _draw(self, family: "Family", errand: ReceivedRequest, batch: int) -> RequestStatus | None:
        """How it ended; None if the training was asked to stop meanwhile, and the request is given back."""
        stopped = False

        def should_stop() -> bool:
            nonlocal stopped
            stopped = self.should_stop()
            return stopped or not errand.wanted

        def on_progress(done: int, total: int) -> None:
            errand.tell(RequestStatus("drawing", "Drawing between training steps", done=done, total=total))

        engine = Engine(vae_tiling=errand.request.engine_settings.vae_tiling)  # The rest is as the training has it.
        with paused_training(family, self.model, engine) as easel:
            images, notices = easel.draw(errand.request, on_progress, should_stop, batch)
        if stopped and errand.wanted and len(images) < errand.request.count:
            errand.give_back("The training is being stopped; this is drawn next.")
            return None
        names = tuple(save_generated(images, images_folder(self.data_dir)))
        return RequestStatus("done" if errand.wanted else "cancelled", notices, pictures=names)


@contextmanager
def paused_training(family: "Family", model: Model, engine: Engine) -> Iterator[AdapterSession]:
    """An easel over a ``model`` in training, whose own adapter is switched off; afterwards it is as it was."""
    import torch

    from sdlora.adapters import attach
    from sdlora.generation.studio import Studio

    card = family.device if family.device.type == "cuda" else None
    with torch.random.fork_rng([card] if card else []), attach.temporary_scales(family.models, {}):
        easel = AdapterSession(Studio.from_family(family, model, engine))
        try:
            yield easel
        finally:
            easel.clear()
            if card:
                torch.cuda.empty_cache()  # What pictures left in pieces must not be missing in the next step.
