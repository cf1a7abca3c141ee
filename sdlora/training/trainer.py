"""One trainer for every family, method and data set: prepare everything once, then step, step, step.

It knows no front end: it emits events and asks ``should_stop()``. All randomness is a function of
the seed and the step, so a resumed run equals an uninterrupted one, and N processes follow one.
"""

import dataclasses
import math
import re
import time
from collections import deque
from collections.abc import Callable

import torch

from sdlora import checkpoint, failpoints
from sdlora.data.batches import Prefetcher
from sdlora.errors import NonFiniteError, SdloraError
from sdlora.events import CheckpointSaved, Progress, RunFinished, RunStarted, RunStopped, StepDone, ignore
from sdlora.generation.memory import used_bytes
from sdlora.optim import averaged_parameters
from sdlora.seeds import derive
from sdlora.time_left import steps_left
from sdlora.training.component_offload import ComponentOffload
from sdlora.training.concept_overlap import concept_overlap, concept_texts, reading_updates
from sdlora.training.distributed import Distributed
from sdlora.training.measurements import Measurements
from sdlora.training.precompute import is_live
from sdlora.training.prepare import TrainState, foreign_state, prepare_training
from sdlora.training.previews import Previews
from sdlora.training.save_adapter import save_a1111_card, save_adapter
from sdlora.training.step import training_step
from sdlora.training.trackers import PREVIEW, open_trackers
from sdlora.training.train_job import TrainJob

MAX_BAD_STEPS = 5
"""Non-finite steps in a row that end a run."""
MAX_BAD_STEPS_FP16 = 20
"""The same where a loss scaler is still looking for its scale: it halves at every overflow."""


OF_DEVICE = re.compile("memory|CUDA|device-side")
"""Words in errors of an optimizer that say nothing of its state."""


def train(job: TrainJob) -> bool:
    """Train to the last step and write the adapter. Returns False if stopped on request, saved.

    Every process of a run calls this. Raises the SdloraError that says what a user can mend.
    """
    begun = time.monotonic()
    distributed = Distributed.setup(job.train, job.output)
    if not distributed.is_main:
        job = dataclasses.replace(job, on_event=ignore)
    elif job.train.tensorboard or job.train.wandb:
        distributed.trackers = open_trackers(job.train, job.output, job.settings())
    train_state = prepare_training(job, distributed)
    if train_state is None:
        saved = checkpoint.newest_state(job.output.states)
        job.on_event(RunStopped(step=saved.step if saved else 0))
        return False
    ended = TrainLoop(job, distributed, train_state).run()
    if ended is not None and distributed.is_main:
        save_adapter(job.output.adapter, train_state, job, ended)
        failpoints.point("end.adapter")
        save_a1111_card(job.output.adapter, train_state, job, ended)
        failpoints.point("end.card")
        # The disk may have kept some that were to go.
        checkpoint.drop_older(job.output.states, ended, job.checkpoint.keep)
        path, seconds = job.output.relative(job.output.adapter), time.monotonic() - begun
        job.on_event(RunFinished(step=ended, adapter=path, seconds=seconds))
    distributed.shutdown()
    return ended is not None


class TrainLoop:
    """The steps of a run, and what happens between them."""

    def __init__(self, job: TrainJob, distributed: Distributed, train_state: TrainState):
        self.job, self.distributed, self.state, self.trained = job, distributed, train_state, train_state.trained
        self.process = train_state.family.process.to(distributed.device)
        self.previews = Previews(job, train_state.family)
        self.measurements = Measurements(job, train_state, self.process)
        self.batch = Prefetcher(lambda number: train_state.batches.read(number, train_state.latents))
        self.offload = ComponentOffload(train_state.family, str(distributed.device), job.train.offload)
        self.durations: deque[float] = deque(maxlen=50)
        needs_base = train_state.batches.needs_base or job.prior.outside_masks
        self.base_only = self.trained.trainable.disabled() if needs_base else None
        """Context in which the base predicts targets."""
        self.prior_weight = job.all_concepts[0].prior_weight or 0.0
        """Weight of class images in batches of one concept; those of several have weights of their own."""
        self.texts = concept_texts(job.all_concepts) if job.loss.concept_overlap else []
        self.overlapping = reading_updates(self.trained.parts) if len(self.texts) > 1 else []
        """Updates that shall not overlap."""
        self.last = train_state.steps
        """Number of steps after which the run ends."""
        self.bad = 0
        """Steps left out in a row."""
        self.gradient_norm = 0.0
        """Norm of the last step's gradients before they were clipped."""

    def run(self) -> int | None:
        """All steps that are left. Returns how many the run has in all; None if stopped on request, saved."""
        self._report_start()
        self._preview(self.state.start, again=self.state.start == 0)  # What a process that was killed did not come to.
        if self._measure(self.state.start):  # A process that was killed had not come to its end.
            return self._end_early(self.state.start)
        for step in range(self.state.start, self.state.steps):
            self.job.between_steps(self.state.family)
            begun = time.monotonic()  # Only now: what is done between steps does not count as a step's time.
            loss = self.step(step)
            if loss is None:
                self._save(step)
                self.job.on_event(RunStopped(step=step))
                return None
            self.durations.append(time.monotonic() - begun)
            self._report_step(step + 1, loss)
            if self._after(step + 1):
                return self._end_early(step + 1)
        return self.last

    def step(self, step: int) -> float | None:
        """Optimizer step ``step`` (from 0); its mean loss, or None if a stop was asked for: then nothing has moved."""
        self._set_rates(step)
        total = self._gradients(step)
        return None if total is None else self._apply(step, total)

    def _set_rates(self, step: int) -> None:
        """Set the learning rates of this step, and which parts train in it."""
        factor = self.job.schedule.factor(step, self.state.steps)
        for group, rate in zip(self.trained.optimizer.param_groups, self.trained.rates, strict=True):
            group["lr"] = rate * factor
        for part in self.trained.parts:
            if part.first or part.last is not None:
                part.parameter.requires_grad_(part.trains_at(step))

    def _gradients(self, step: int) -> torch.Tensor | None:
        """Add up the gradients of one optimizer step; the mean loss, or None if a stop was asked for meanwhile.

        The loss, a scalar, stays on the device: nothing here waits for it.
        """
        settings, distributed, train_state = self.job.train, self.distributed, self.state
        total = torch.zeros((), device=distributed.device)
        for micro in range(settings.gradient_accumulation):
            if distributed.any_process(self.job.should_stop()):
                self.trained.optimizer.zero_grad()
                return None
            number = step * settings.gradient_accumulation + micro
            batch = self.batch(number)
            torch.manual_seed(derive(settings.seed, "dropout", number, distributed.rank))
            with distributed.autocast():
                loss = training_step(
                    train_state.family,
                    self.process,
                    batch,
                    train_state.encode,
                    self.job.loss,
                    self.prior_weight,
                    settings.seed,
                    number,
                    self.base_only,
                    self.job.prior.outside_masks,
                )
            loss = loss / settings.gradient_accumulation
            distributed.backward(loss)
            total += loss.detach()
        for penalty in (self.trained.trainable.penalty(), self._concept_overlap()):
            if penalty is not None:
                distributed.backward(penalty)
                total += penalty.detach()
        distributed.average_gradients(self.trained.parameters, total)
        return total

    def _concept_overlap(self) -> torch.Tensor | None:
        """Return the penalty on what two concepts' updates have in common; None without one."""
        if not self.overlapping:
            return None
        with self.distributed.autocast():
            rows = self.state.encode(self.texts, 1).text
        lengths = [len(self.state.family.token_ids_without_special(text)) for text in self.texts]
        return self.job.loss.concept_overlap * concept_overlap(self.overlapping, rows, lengths)

    @torch.no_grad()
    def _apply(self, step: int, total: torch.Tensor) -> float:
        """Clip the gradients and step; the loss ``total`` as a number. What is not finite is left out; too much of it
        ends the run.
        """
        optimizer = self.trained.optimizer
        norm = self.distributed.clip(optimizer, self.trained.parameters, self.job.train.max_grad_norm)
        # The one time that a step waits for the device; a scaler of losses (fp16) and other processes are asked too.
        loss, self.gradient_norm = torch.stack([total, norm.to(total)]).tolist()
        finite = math.isfinite(loss) and math.isfinite(self.gradient_norm)
        if finite or self.distributed.scales:  # The scaler itself leaves an overflow out, and must see it to do so.
            if finite:
                self.trained.trainable.before_step(step, self.state.steps)
            self._step_optimizer(step)
        optimizer.zero_grad()
        if finite:
            self.trained.trainable.after_step(step, self.state.steps)
        self.bad = 0 if finite else self.bad + 1
        if not finite and not (self.distributed.scales and self.bad < MAX_BAD_STEPS):  # A scaler that looks is no news.
            self.job.notice(f"step {step + 1} was left out: its loss or gradient is not finite")
        if self.bad >= (MAX_BAD_STEPS_FP16 if self.distributed.scales else MAX_BAD_STEPS):
            raise NonFiniteError(
                f"{self.bad} steps in a row gave no finite gradient (the last was {step + 1}); start again with a "
                "lower train.learning_rate, or with train.precision bf16 or fp32"
            )
        return loss  # type: ignore[no-any-return]

    def _step_optimizer(self, step: int) -> None:
        """Step. Raises FileError if the state that the run goes on from lacks what the optimizer needs."""
        try:
            self.trained.optimizer.step()
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if not step or step > self.state.start or OF_DEVICE.search(str(error)):
                raise
            raise foreign_state(step, error) from error

    def _after(self, step: int) -> bool:
        """Checkpoints and previews that are due after ``step`` finished steps; the last step gets both.

        Returns whether the run ends early.
        """
        if self._is_due(self.job.checkpoint.every, step):
            self._save(step)  # First: nothing that goes wrong with a preview may cost the steps before it.
        self._preview(step)
        return self._measure(step)

    def _end_early(self, step: int) -> int:
        """Report why the run ends after ``step`` steps, and do what a normal end does, as far as it is not done."""
        if self.state.stopping.decision is not None:
            self.job.on_event(self.state.stopping.decision)
        saved, shown = (self._is_due(every, step) for every in (self.job.checkpoint.every, self.job.sample.every))
        self.last = step
        if not saved and step > self.state.start:
            self._save(step)
        if not shown:
            self._preview(step, again=False)
        if any(full > step for full in self.state.measured.full):
            self.state.measured = self.state.measured.ending_at(step)
            self._measure(step)
        return step

    def _measure(self, step: int) -> bool:
        """Measure what is learnt after ``step`` finished steps, if that is due. Returns whether the run ends by it."""
        if not self.state.measured.is_due(step, self.last):
            return False
        stopping = self.state.stopping

        def measure() -> None:
            found = self.measurements.measure(step)
            if found is not None:
                stopping.add(found, self.last)

        with averaged_parameters(self.trained.optimizer):
            self._alone(measure)
        return stopping.is_on and self.distributed.any_process(stopping.decision is not None)

    def _is_due(self, every: int, step: int) -> bool:
        return step == self.last or (every > 0 and step % every == 0)

    def _preview(self, step: int, again: bool = True) -> None:
        """The previews of ``step``, if some are due; those that are there already only ``again``."""
        if self.job.sample.every and self._is_due(self.job.sample.every, step):

            def generate() -> None:
                try:
                    self.offload.for_generation()
                    self.previews.generate(step, again)
                    self._track_previews(step)
                except torch.OutOfMemoryError:  # The device may hold the denoiser alone: no reason to end the run.
                    self.job.notice(f"no preview at step {step}: the device has too little memory for it")
                self.offload.for_training(self.trained.trains_text or is_live(self.state.encode))

            with averaged_parameters(self.trained.optimizer):
                self._alone(generate)

    def _track_previews(self, step: int) -> None:
        """Log the previews of ``step`` to the run's trackers."""
        for index in range(len(self.job.sample.prompts)):
            try:
                if (path := self.job.output.sample(step, index)).is_file():
                    self.distributed.trackers.log_image(f"{PREVIEW}/{index}", path, step)
            except SdloraError as error:
                self.job.notice(f"a preview of step {step} was not logged: {error}")

    def _save(self, step: int) -> None:
        """The adapter as a file of its own, and the state that a resume needs."""

        def write() -> None:
            self.job.on_event(Progress(phase="saving", done=0, total=1))
            path = self.job.output.checkpoint(step)
            save_adapter(path, self.state, self.job, step)
            failpoints.point("checkpoint.adapter")
            checkpoint.save(self.job.output.states, self.state.to_checkpoint(step), self.job.checkpoint.keep)
            failpoints.point("checkpoint.saved")
            self.job.on_event(CheckpointSaved(step=step, path=self.job.output.relative(path)))

        self._alone(write)

    def _alone(self, work: Callable[[], None]) -> None:
        """Let the main process do ``work`` while the others wait."""
        if self.distributed.is_main:
            work()
        self.distributed.barrier()

    def _report_start(self) -> None:
        self.job.on_event(
            RunStarted(
                step=self.state.start,
                steps=self.state.steps,
                device=str(self.distributed.device),
                precision=self.distributed.precision,
                base=self.job.model.base,
                images=len(self.state.batches.examples),
                stop=self.job.train.stop,
                **self.trained.trainable.size._asdict(),
            )
        )

    def _report_step(self, step: int, loss: float) -> None:
        text_rate, seconds = self.trained.current_rate(text=True), self.durations[-1]
        rate = self.trained.current_rate(text=False)
        rate = text_rate or 0.0 if rate is None else rate
        left = steps_left(self.durations, self.state.steps - step)
        self.job.on_event(
            StepDone(
                step=step,
                steps=self.state.steps,
                loss=loss,
                learning_rate=rate,
                seconds=seconds,
                left=left,
                memory=used_bytes(self.distributed.device),
                gradient_norm=self.gradient_norm,
            )
        )
        logged = {"loss": loss, "learning_rate": rate, "seconds": seconds, "gradient_norm": self.gradient_norm}
        if text_rate is not None:
            logged["text_encoder_learning_rate"] = text_rate
        self.distributed.log(logged, step)
