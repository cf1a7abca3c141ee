"""Measurements between steps: losses on fixed noise, adapter against base, and the size of the updates.

They read the live model and leave it, and every random state, as it was: a run with them learns the bits of one
without. Each number is a function of the seed, the images and the weights, so a resumed run measures the same.
"""

from collections.abc import Iterable

import torch

from sdlora.diffusion.process import NoiseProcess
from sdlora.events import Measured, report_progress
from sdlora.families.base import to_device_async
from sdlora.generation.sampling import eval_mode
from sdlora.seeds import derive
from sdlora.signals import PictureLoss, as_values, scalars
from sdlora.training.measured_images import MeasuredImage
from sdlora.training.prepare import TrainState
from sdlora.training.step import squared_error
from sdlora.training.train_job import TrainJob
from sdlora.training.update_sizes import block_updates

PHASE = "measuring"


class Measurements:
    """Measurements of a run. The base's losses are measured when they are first needed, and kept."""

    def __init__(self, job: TrainJob, train_state: TrainState, process: NoiseProcess):
        self.job, self.state, self.process = job, train_state, process
        self.times = middle_times(process, job.monitor.timesteps, (job.loss.min_timestep, job.loss.max_timestep))
        self._base: dict[str, tuple[float, ...]] = {}

    def measure(self, step: int) -> Measured | None:
        """Report what is learnt after ``step`` steps, to the run's events and its tracker.

        Returns the event; None, and nothing is reported, if the run is asked to stop.
        """
        images = self.state.measured.measured_at(step)
        is_base = step == 0 and self.state.measured.is_base_at_start
        report, losses = report_progress(self.job.on_event, PHASE), []
        with eval_mode(self.state.family):
            for number, image in enumerate(images):
                if self.job.should_stop():
                    return None
                report(number, len(images))
                losses.append(self._losses(image, is_base))
        updates = block_updates(self.state.trained.trainable.state())
        times = [float(time) for time in self.times]
        event = Measured(step=step, times=times, pictures=as_values(losses), updates=as_values(updates))
        self.job.on_event(event)
        self.state.distributed.log(scalars(losses, updates), step)
        return event

    def _losses(self, image: MeasuredImage, is_base: bool) -> PictureLoss:
        if image.name not in self._base:
            with self.state.trained.trainable.disabled():
                self._base[image.name] = self._measure(image)
        adapted = self._base[image.name] if is_base else self._measure(image)
        return PictureLoss(image.name, self._base[image.name], adapted, image.held_out, image.always)

    def _measure(self, image: MeasuredImage) -> tuple[float, ...]:
        """Return the mean squared error at each time, as the model is now; at most a step's batch at once."""
        state, latents = self.state, self.state.latents.read(image.view)
        noise = fixed_noise(latents.mean.shape, self.job.train.seed, image, range(len(self.times)))
        errors = []
        with state.distributed.autocast():
            text = state.encode([image.caption], state.reader.count(image.caption))
            for rows in _chunks(range(len(self.times)), self.job.train.batch_size):
                count = len(rows)
                clean = latents.mean.expand(count, -1, -1, -1)
                mask = None if latents.mask is None else latents.mask.expand(count, -1, -1, -1)
                clean, own_noise, times = (
                    to_device_async(tensor.contiguous(), state.family.device)
                    for tensor in (clean, noise[rows.start : rows.stop], self.times[rows.start : rows.stop])
                )
                size_and_crop = torch.tensor([image.view.size_and_crop] * count)
                noisy = self.process.add_noise(clean, own_noise, times)
                prediction = state.family.predict(noisy, times, text.select_rows([0] * count), size_and_crop)
                target = self.process.target(clean, own_noise, times)
                weights = None if mask is None else mask.to(state.family.device)
                errors.append(squared_error(prediction, target, weights))
        return tuple(torch.cat(errors).tolist())


def middle_times(process: NoiseProcess, count: int, span: tuple[int, int | None]) -> torch.Tensor:
    """Return the middles of ``count`` equal parts of the trained ``span``, (count,), as the denoiser reads times."""
    first, end = span[0], process.num_train_timesteps if span[1] is None else span[1] + 1
    end = min(end, process.num_train_timesteps)
    middles = [min(int(first + (part + 0.5) * (end - first) / count), end - 1) for part in range(count)]
    generator = torch.Generator()  # Of a span of one time, nothing else can be sampled.
    return torch.cat([process.sample_time("uniform", (time, time), 0, 0, 0, generator) for time in middles])


def fixed_noise(shape: torch.Size, seed: int, image: MeasuredImage, parts: Iterable[int]) -> torch.Tensor:
    """Return the noise of an image at each time, (times, C, H, W): of its content and ``seed``, and of no step."""
    key = image.view.example.digest or image.name
    generators = (torch.Generator().manual_seed(derive(seed, "measured noise", key, part)) for part in parts)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _chunks(rows: range, size: int) -> Iterable[range]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
