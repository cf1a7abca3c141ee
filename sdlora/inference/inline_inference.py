"""Generation between two steps of a training: the requests to its device, with the model that is in training.

The training loses nothing but time: its adapter is switched off meanwhile, and adapters, modes, gradients and random
states are restored afterwards, so that its result is the same to the bit.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.errors import OutOfMemoryError, SdloraError
from sdlora.events import Cancelled, Finished, Result, report_progress
from sdlora.families.base import Family
from sdlora.families.base_models import locate_base
from sdlora.families.settings import Model
from sdlora.filesystem.reading import size_of
from sdlora.formatting import format_bytes
from sdlora.generation.settings import Engine
from sdlora.inference.adapter_session import AdapterSession, failure, save_generated, translate_error
from sdlora.inference.device_requests import DeviceRequests, ReceivedRequest
from sdlora.inference.generation_request import GenerationRequest
from sdlora.storage.gallery import images_folder

BATCHES = (4, 2, 1)
"""Images at once on a graphics card: as many as fit. On a CPU, one."""
LONGEST_PAUSE = 10.0
"""Most seconds that requests wait for the training after one was served; else as long as that took."""
AFTERWARDS = "this is drawn after the training"


class Declined(Exception):
    """Reason why a request has to wait for the end of the training."""


@dataclass
class InlineInference:
    """A callable that serves requests between two training steps; ``several`` processes that train serve none."""

    requests: DeviceRequests
    data_dir: Path
    model: Model
    should_stop: Callable[[], bool]
    several: bool
    _declined: set[str] = field(default_factory=set)
    """Names of requests that this training does not serve."""
    _next_time: float = 0.0
    """Earliest time of the next generation, on the monotonic clock."""
    _broken: bool = False

    def __call__(self, family: "Family") -> None:
        """Serve the oldest request, if there is one. Whatever goes wrong with it costs the training nothing."""
        if self._broken or time.monotonic() < self._next_time:
            return
        try:
            if received := self.requests.take(self._declined):
                begun = time.monotonic()
                self._serve(family, received)
                now = time.monotonic()
                self._next_time = now + min(now - begun, LONGEST_PAUSE)
        except (SdloraError, OSError):
            traceback.print_exc()
            self._broken = True  # Requests cannot be read or answered: their senders wait until the device is free.

    def _serve(self, family: "Family", received: ReceivedRequest) -> None:
        try:
            batch = self._fitting_batch(family, received.request)
            self._generate(family, received, batch)
        except Declined as reason:
            self._decline(received, f"{reason}; {AFTERWARDS}.")
        except Exception as error:
            known = translate_error(error)
            if isinstance(known, OutOfMemoryError):
                self._decline(received, f"The training leaves too little memory for these pictures; {AFTERWARDS}.")
            else:
                received.finish(failure(known, "the run's log"))

    def _decline(self, received: ReceivedRequest, reason: str) -> None:
        self._declined.add(received.name)
        received.give_back(reason)

    def _fitting_batch(self, family: "Family", request: GenerationRequest) -> int:
        """Return how many images to generate at once. Raises Declined, or ModelError for a base that does not exist."""
        from sdlora.generation import memory

        self._require_same_base(family, request)
        width, height = request.width or family.native_size, request.height or family.native_size
        sizes = BATCHES if family.device.type == "cuda" else (1,)
        adapters = sum(size_of(Path(adapter.path).resolve()) for adapter in request.adapters)
        closed = family.modules.closed_bytes
        if closed > memory.unreserved_bytes(family.device):  # What the steps have reserved, they need again.
            raise Declined("The training leaves too little memory for the parts of the base that it does not use")
        free, needed = memory.free_bytes(family.device), 0
        side = None if request.engine_settings.vae_tiling == "off" else family.tile_size
        for batch in (min(size, request.count) for size in sizes):
            needed = closed + memory.generation_bytes(family, width, height, batch, request.cfg > 1, side, adapters)
            if needed <= free:
                return batch
        short = f"{format_bytes(needed)} are needed and {format_bytes(free)} free"
        raise Declined(f"The training leaves too little memory for a picture of {width}x{height} ({short})")

    def _require_same_base(self, family: "Family", request: GenerationRequest) -> None:
        """Raise Declined unless this training's base can generate ``request``."""
        if self.several:
            raise Declined("A training in several processes draws nothing else")
        if family.modules.device_of("vae") != family.device:
            raise Declined("A training that is short of memory draws nothing else")
        if locate_base(request.base) != locate_base(self.model.base):
            raise Declined(f"A training of another base ({self.model.base}) is using the device")
        # The path of a vocabulary changes no image.
        same = {"base": self.model.base, "tokenizer": self.model.tokenizer}
        if request.model.model_copy(update=same) != self.model:
            raise Declined("A training with other settings of this base is using the device")

    def _generate(self, family: "Family", received: ReceivedRequest, batch: int) -> None:
        """Generate the images and report them; the request is given back if the training is asked to stop meanwhile."""
        stopped = False

        def should_stop() -> bool:
            nonlocal stopped
            stopped = self.should_stop()
            return stopped or not received.wanted

        progress = report_progress(received.report, "drawing between training steps", every=0)
        engine = Engine(vae_tiling=received.request.engine_settings.vae_tiling)  # The rest is as the training has it.
        with paused_training(family, self.model, engine) as session:
            images = session.generate(received.request, received.report, progress, should_stop, batch)
        if stopped and received.wanted and len(images) < received.request.count:
            received.give_back("The training is being stopped; this is drawn next.")
            return
        received.report(Result(value=save_generated(images, images_folder(self.data_dir))))
        received.finish(Finished() if received.wanted else Cancelled())


@contextmanager
def paused_training(family: "Family", model: Model, engine: Engine) -> Iterator[AdapterSession]:
    """Open a session on a ``model`` in training, whose own adapter is switched off; restore everything afterwards."""
    import torch

    from sdlora.adapters import attach
    from sdlora.generation.studio import Studio

    card = family.device if family.device.type == "cuda" else None
    with torch.random.fork_rng([card] if card else []), attach.temporary_scales(family.models, {}):
        session = AdapterSession(Studio.from_family(family, model, engine))
        try:
            yield session
        finally:
            session.clear()
            if card:
                torch.cuda.empty_cache()  # The allocator's leftovers must not be missing in the next step.
