"""One trainer for every family, method and data set: prepare everything once, then step, step, step.

It knows no front end: it emits events and asks ``should_stop()``. Everything drawn is a function of
the seed and the step, so a resumed run equals an uninterrupted one, and N processes follow one.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sdlora import checkpoint as saving
from sdlora.adapters import Adapter, live
from sdlora.checkpoint import Checkpoint
from sdlora.data.settings import Data, Prior
from sdlora.diffusion.schedule import NoiseSchedule
from sdlora.errors import NonFiniteError
from sdlora.events import CheckpointSaved, Notice, OnEvent, Progress, RunFinished, RunStarted, RunStopped, StepDone
from sdlora.families.settings import Model
from sdlora.generation.settings import Sample
from sdlora.optim import Optimizer, Schedule
from sdlora.seeds import derive
from sdlora.training import prepare
from sdlora.training.output import RunPaths
from sdlora.training.parallel import Gang
from sdlora.training.previews import Previews
from sdlora.training.settings import Loss, Train
from sdlora.training.step import training_step
from sdlora.training.write import write_card, write_trained

MAX_BAD_STEPS = 5
"""Non-finite steps in a row that end a run."""
MAX_BAD_STEPS_FP16 = 20
"""The same where a loss scaler is still looking for its scale: it halves at every overflow."""


@dataclass(kw_only=True)
class Trainer:
    """A run: the sections of its config, where it writes, whom it tells, and who may stop it."""

    model: Model
    data: Data
    prior: Prior
    adapter: Adapter
    train: Train
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    checkpoint: Checkpoint
    sample: Sample
    output: RunPaths
    cache: Path
    on_event: OnEvent
    should_stop: Callable[[], bool]

    def run(self) -> bool:
        """Train to the last step. Returns False if stopped on request, saved.

        Raises the SdloraError that says what a user can mend.
        """
        begun = time.monotonic()
        gang = Gang.assemble(self.train, self.output)
        if not gang.is_main:
            self.on_event = lambda event: None
        ready = self._prepare(gang)
        if ready is None:
            self.on_event(RunStopped(step=0))
            return False
        finished = self._loop(gang, ready)
        if finished and gang.is_main:
            write_trained(self.output.adapter, ready, self, ready.steps)
            write_card(self.output.adapter, ready, self)
            self.on_event(
                RunFinished(
                    step=ready.steps,
                    adapter=self.output.relative(self.output.adapter),
                    seconds=time.monotonic() - begun,
                )
            )
        gang.end()
        return finished

    def _prepare(self, gang: Gang) -> "prepare.Ready | None":
        """Everything that is done once: None if stopped meanwhile."""
        ready = prepare.prepare(self, gang)
        if ready is None:
            return None
        size = live.size(ready.family.models, prepare.NAME)
        self.on_event(
            RunStarted(
                step=ready.start,
                steps=ready.steps,
                device=str(gang.device),
                precision=gang.precision,
                base=self.model.base,
                images=len(ready.batches.examples),
                modules=size.modules,
                parameters=size.parameters,
                share=size.share,
            )
        )
        return ready

    def _loop(self, gang: Gang, ready: "prepare.Ready") -> bool:
        """The steps, with what happens between them. False if stopped on request."""
        schedule = NoiseSchedule(ready.family.scheduler_config, gang.device)
        previews = Previews(self.sample, ready.family, self.output, self.on_event)
        durations: deque[float] = deque(maxlen=50)
        bad = 0
        if ready.start == 0:
            self._between(gang, lambda: previews.draw(0))
        for step in range(ready.start, ready.steps):
            begun = time.monotonic()
            self._set_rates(ready, step)
            loss = self._gradients(gang, ready, schedule, step)
            if loss is None:
                self._save(gang, ready, step)
                self.on_event(RunStopped(step=step))
                return False
            bad = 0 if self._apply(gang, ready, loss) else bad + 1
            self._check_bad(gang, step, bad)
            durations.append(time.monotonic() - begun)
            self._tell_step(gang, ready, step + 1, loss, durations)
            self._after_step(gang, ready, previews, step + 1)
        return True

    def _gradients(self, gang: Gang, ready: "prepare.Ready", schedule: NoiseSchedule, step: int) -> float | None:
        """Add up the gradients of one optimizer step; the mean loss, or None if a stop was asked for meanwhile."""
        total = torch.zeros((), device=gang.device)
        for micro in range(self.train.gradient_accumulation):
            if gang.any(self.should_stop()):
                ready.optimizer.zero_grad()
                return None
            number = step * self.train.gradient_accumulation + micro
            batch = ready.batches.read(number, ready.latents)
            torch.manual_seed(derive(self.train.seed, "dropout", number, gang.rank))
            with gang.autocast():
                loss = training_step(
                    ready.family, schedule, batch, ready.encode, self.loss, self.prior.weight, self.train.seed, number
                )
                loss = loss / self.train.gradient_accumulation
            gang.backward(loss)
            total += loss.detach()
        gang.average_gradients(ready.trained, total)
        return total.item()

    def _apply(self, gang: Gang, ready: "prepare.Ready", loss: float) -> bool:
        """Clip the gradients and step; False if the step had to be left out, its loss or gradient being non-finite."""
        norm = gang.clip(ready.optimizer, ready.trained, self.train.max_grad_norm)
        finite = bool(torch.isfinite(norm)) and loss == loss and abs(loss) != float("inf")
        if finite or gang.scales:  # The scaler itself leaves an overflowing step out, and must see it to do so.
            ready.optimizer.step()
        ready.optimizer.zero_grad()
        return finite

    def _check_bad(self, gang: Gang, step: int, bad: int) -> None:
        if not bad:
            return
        self.on_event(Notice(message=f"step {step + 1} was left out: its loss or gradient is not finite"))
        if bad >= (MAX_BAD_STEPS_FP16 if gang.scales else MAX_BAD_STEPS):
            raise NonFiniteError(
                f"{bad} steps in a row gave no finite gradient (the last was {step + 1}); lower train.learning_rate, "
                "or set train.precision to bf16 or fp32, then resume"
            )

    def _set_rates(self, ready: "prepare.Ready", step: int) -> None:
        """Learning rates of this step, and whether the text encoder still learns in it."""
        factor = self.schedule.factor(step, ready.steps)
        for group, rate in zip(ready.optimizer.param_groups, ready.rates, strict=True):
            group["lr"] = rate * factor
        if self.train.text_encoder_stop is not None and step >= self.train.text_encoder_stop:
            for parameter in ready.text_parameters:
                parameter.requires_grad_(False)

    def _tell_step(self, gang: Gang, ready: "prepare.Ready", step: int, loss: float, durations: deque[float]) -> None:
        rate = ready.optimizer.param_groups[0]["lr"]
        seconds = statistics.median(durations)
        left = seconds * (ready.steps - step)
        self.on_event(
            StepDone(step=step, steps=ready.steps, loss=loss, learning_rate=rate, seconds=durations[-1], left=left)
        )
        gang.log({"loss": loss, "learning_rate": rate, "seconds": durations[-1]}, step)

    def _after_step(self, gang: Gang, ready: "prepare.Ready", previews: Previews, step: int) -> None:
        """Previews and checkpoints that are due after ``step`` finished steps; the last step gets both."""
        last = step == ready.steps
        if self.sample.every and (step % self.sample.every == 0 or last):
            self._between(gang, lambda: previews.draw(step))
        if last or (self.checkpoint.every and step % self.checkpoint.every == 0):
            self._save(gang, ready, step)

    def _between(self, gang: Gang, work: Callable[[], None]) -> None:
        if gang.is_main:
            work()
        gang.wait()

    def _save(self, gang: Gang, ready: "prepare.Ready", step: int) -> None:
        """The adapter as a file of its own, and the state that a resume needs."""
        if gang.is_main:
            self.on_event(Progress(phase="saving", done=0, total=1))
            path = self.output.checkpoint(step)
            write_trained(path, ready, self, step)
            saving.save(self.output.states, ready.state(step), self.checkpoint.keep)
            self.on_event(CheckpointSaved(step=step, path=self.output.relative(path)))
        gang.wait()
