"""The process that trains one run: ``python -m sdlora.jobs.training_worker RUN_FOLDER``.

It locks the run and the device, writes the journal, and turns whatever happens into an event
and an exit code. Under ``torchrun`` or ``accelerate launch`` every rank runs this.
"""

import os
import re
import signal
import sys
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from sdlora.checkpoint import newest_step
from sdlora.config import TrainConfig
from sdlora.errors import BusyError, DeviceError, FileError, OutOfMemoryError, SdloraError
from sdlora.events import Event, Notice, OnEvent, RunFailed, RunStarted, RunStopped, ignore
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.writing import file_errors
from sdlora.inference.adapter_session import NO_MEMORY
from sdlora.inference.device_requests import DeviceRequests
from sdlora.inference.inline_inference import InlineInference
from sdlora.jobs.launch import QUEUED
from sdlora.jobs.memory_savings import as_flags, next_saving
from sdlora.storage.device_lock import device_lock
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import LOCK_SECONDS, Run

PEER_LOST = re.compile(r"Connection (closed|reset) by peer|NCCL|\[gloo\]|Socket closed", re.IGNORECASE)
"""Errors of the other processes when one of several has ended."""


class StopRequest:
    """Request to stop the run, by SIGINT or SIGTERM or by its stop file. A second signal exits at once.

    As long as a run ``waits`` in the queue, it is stopped by being taken out of it too.
    """

    def __init__(self, run: Run, waits: bool = False):
        self.run, self.waits = run, waits
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def __call__(self) -> bool:
        return bool(self.signal) or self.run.stop_file.exists() or (self.waits and not self.run.is_queued)

    def obey(self) -> int:
        """Forget the request, which would stop the next process too, and return the exit code that it asks for."""
        with suppress(OSError):
            self.run.stop_file.unlink(missing_ok=True)
        return 128 + (self.signal or signal.SIGTERM)


def main() -> int:
    run = Run(Path(sys.argv[1]))
    stop = StopRequest(run, waits=QUEUED in sys.argv[2:])
    is_main = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as locks:
        try:
            with file_errors(run.folder, "read or written"):
                if is_main:
                    locks.enter_context(run.hold())
                    if stop():
                        print(f"{run.name} was asked to stop before it began; start it again", file=sys.stderr)
                        return stop.obey()
                    run.sweep()
                journal = Journal(run.journal) if is_main else None
        except SdloraError as error:  # Not this process's run: its journal belongs to another.
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        try:
            lock_file = _hold_device(run, locks)
            finished = _train(run, stop, _recorder(run, journal, stop) if journal else ignore, lock_file)
            return 0 if finished else stop.obey()
        except Exception as error:
            if stop.waits and isinstance(error, BusyError):  # It waits on; another run has the device.
                print(f"error: {error}", file=sys.stderr)
                return error.exit_code
            return _report(error, run, journal)


def _recorder(run: Run, journal: Journal, stop: StopRequest) -> OnEvent:
    """Return what writes events to the journal, and then takes the run out of the queue, whoever started it.

    In this order: a run that is killed before the journal says that it started still waits.
    """

    def record(event: Event) -> None:
        journal(event)
        if isinstance(event, RunStarted | RunStopped) and run.is_queued:
            stop.waits = False
            run.queued_file.unlink(missing_ok=True)

    return record


def _hold_device(run: Run, locks: ExitStack) -> Path | None:
    """Lock this process's device, and return the lock file.

    None where several processes share one: the first of them has the lock.
    """
    import torch

    from sdlora.generation.device import choose_device

    device, local = choose_device(run.config.train.device), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local)  # as Accelerate places it
    elif local:
        return None
    lock_file = device_lock(run.data_dir, device)
    locks.enter_context(hold_lock(lock_file, f"the device {device}", LOCK_SECONDS))
    return lock_file


def _train(run: Run, stop: StopRequest, on_event: OnEvent, lock_file: Path | None) -> bool:
    """Train; generation requests to the owner of ``lock_file`` are served between the steps."""
    from sdlora.training.train_job import TrainJob, nothing
    from sdlora.training.trainer import train

    config, between = _fitted_config(run, on_event), nothing
    if lock_file is not None:
        requests = DeviceRequests(lock_file)
        requests.open()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        between = InlineInference(requests, run.data_dir, config.model, stop, several)
    return train(
        TrainJob(
            **dict(config),
            output=run,
            cache=run.data_dir / "cache",
            on_event=on_event,
            should_stop=stop,
            between_steps=between,
        )
    )


def _fitted_config(run: Run, on_event: OnEvent) -> TrainConfig:
    """Return the run's config, fitted into ``train.memory`` and saved so, so that a resume repeats it."""
    if run.config.train.memory is None:
        return run.config
    from sdlora.generation.device import choose_device
    from sdlora.jobs.fit_to_memory import fit_to_memory
    from sdlora.jobs.preflight import require_alone

    require_alone(run.config, int(os.environ.get("WORLD_SIZE", "1")))
    config, notices = fit_to_memory(run.config, choose_device(run.config.train.device), on_event)
    config.save(run.config_file)
    for message in notices:
        on_event(Notice(message=message))
    return config


def _report(error: Exception, run: Run, journal: Journal | None) -> int:
    """Write to the journal and the log what went wrong; return the exit code.

    Of several processes only the one that failed reports: the others see a connection that broke.
    """
    with suppress(OSError):  # The log may be what fills the disk.
        traceback.print_exc()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and PEER_LOST.search(str(error)):
        return 1
    known = error if isinstance(error, SdloraError) else translate_error(error, _config_of(run))
    message = str(known) if known else f"{type(error).__name__}: {error} (a bug; the end of the log says where)"
    if isinstance(known, OutOfMemoryError | DeviceError) and (saved := newest_step(run.states)):
        message += f"; {saved} steps are saved"
    code = known.exit_code if known else 1
    try:
        (journal or Journal(run.journal))(RunFailed(message=message, exit_code=code))
        run.queued_file.unlink(missing_ok=True)
    except (FileError, OSError):  # Then the log, which front ends read too; on a full disk the exit code has to do.
        with suppress(OSError):
            print(f"error: {message}", file=sys.stderr)
    return code


def _config_of(run: Run) -> TrainConfig | None:
    """Return the run's config; None if it can no longer be read."""
    with suppress(SdloraError):
        return run.config
    return None


def translate_error(error: Exception, config: TrainConfig | None = None) -> SdloraError | None:
    """Return the error that a library's exception means to the user, or None for a bug; ``config`` is of the run."""
    import torch

    text = str(error)
    no_memory = NO_MEMORY.search(text)
    if isinstance(error, OSError):
        return FileError(f"{error.filename or 'a file'}: {error.strerror or error}; mend that, then resume")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return OutOfMemoryError(f"the device ran out of memory; {_relief(config)}")
    if isinstance(error, RuntimeError) and ("CUDA error" in text or "device-side" in text):
        return DeviceError(f"the device was lost: {text.splitlines()[0]}; resume from the last checkpoint")
    return None


def _relief(config: TrainConfig | None) -> str:
    """Return what to do where memory was too little: the next memory saving, by its settings."""
    least = "a lower data.resolution or adapter.rank"
    if config is None:
        return f"start again with --memory and a size, or with {least}"
    on_card = config.train.device != "cpu"
    if on_card and config.train.device == "auto":
        import torch

        on_card = torch.cuda.is_available() or torch.backends.mps.is_available()
    saving = as_flags(next_saving(config, on_card))
    return f"start again with {saving} (the next memory saving), or {least}" if saving else f"start again with {least}"


if __name__ == "__main__":
    sys.exit(main())
