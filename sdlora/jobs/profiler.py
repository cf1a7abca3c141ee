"""Profiling of runs, one at a time, in a process of its own while no other has the device."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from sdlora.config import TrainConfig
from sdlora.errors import BusyError, FileError, SdloraError, error_class
from sdlora.events import Failed, OnEvent
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.writing import file_errors
from sdlora.jobs.background import BackgroundLoop
from sdlora.jobs.measurement import Measurement, cached_measurement, measurement_file
from sdlora.python_process import spawn_python
from sdlora.storage.device_lock import device_busy
from sdlora.storage.journal import follow_events, read_events

CALM_SECONDS = 3.0
"""Seconds for which a requested config has to stay the same before it is measured."""


class Profiler(BackgroundLoop):
    """Measures runs, those that are requested in the background. The process's events go to a log beside its result."""

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._result: Path | None = None
        self._requested: tuple[float, TrainConfig] | None = None
        self._tried: set[Path] = set()

    def close(self) -> None:
        """End, and the current measurement with it."""
        super().close()
        self.stop()

    def request(self, config: TrainConfig) -> None:
        """Have ``config`` measured after a moment of calm, in place of the config that was requested before.

        Only if its base is a bundled, thus small one, it was not tried before, and no process has the device.
        """
        result = measurement_file(config, self.data_dir)
        with self._lock:
            measured = cached_measurement(config, self.data_dir) is not None
            wanted = config.model.base in BUNDLED and not measured and (result.exists() or result not in self._tried)
            self._requested = (time.monotonic(), config) if wanted and not device_busy(self.data_dir) else None

    def is_pending(self, config: TrainConfig) -> bool:
        """Return whether ``config`` is requested, and will be measured after a moment of calm."""
        with self._lock:
            if self._requested is None:
                return False
            return measurement_file(self._requested[1], self.data_dir) == measurement_file(config, self.data_dir)

    def tick(self) -> None:
        """Measure the requested config, if it has not changed for a moment and the device is free."""
        with self._lock:
            if self._requested is None or time.monotonic() - self._requested[0] < CALM_SECONDS:
                return
            config, self._requested = self._requested[1], None
            with suppress(SdloraError):  # What is wrong with it is reported where it was requested.
                self.start(config)

    def start(self, config: TrainConfig, with_savings: bool = False) -> None:
        """Start measuring ``config``; ``with_savings`` also counts what it takes with further memory savings.

        Raises BusyError while another process measures, trains or generates.
        """
        with self._lock:
            if self.measures():
                raise BusyError("something is being measured already; wait a moment")
            if device_busy(self.data_dir):
                raise BusyError("a training or a drawing has the device; measuring waits until it is free")
            self._requested, self._result = None, measurement_file(config, self.data_dir)
            self._tried.add(self._result)
            try:
                self._process = self._spawn(config, with_savings)
            except FileError as error:
                raise FileError(f"{error}; choose another --data-dir") from error

    def _spawn(self, config: TrainConfig, with_savings: bool) -> "subprocess.Popen[bytes]":
        result = measurement_file(config, self.data_dir)
        config_file, log_file = result.with_suffix(".toml"), result.with_suffix(".log")
        config.save(config_file)
        command = ["-m", "sdlora.jobs.profile_worker", str(self.data_dir), str(config_file), str(result)]
        command += ["savings"] if with_savings else []
        with file_errors(log_file), open(log_file, "wb") as log:
            result.unlink(missing_ok=True)  # An outdated one would hide why this one fails.
            return spawn_python(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def finish(self, config: TrainConfig, on_event: OnEvent) -> Measurement:
        """Measure ``config`` with its memory savings to the end, and pass the events on.

        Measuring ends if ``on_event`` raises. Raises BusyError as ``start`` does, and what the run would fail with.
        """
        self.start(config, with_savings=True)
        process, log = self._process, measurement_file(config, self.data_dir).with_suffix(".log")
        assert process is not None
        try:
            for event in follow_events(log, lambda: process.poll() is not None):
                on_event(event)
        except BaseException:
            self.stop()
            raise
        found = cached_measurement(config, self.data_dir)
        if process.returncode or found is None:
            raise error_class(process.returncode)(self.failure(config) or f"measuring was cut off; see {log}")
        return found

    def measures(self, config: TrainConfig | None = None) -> bool:
        """Return whether a measurement is under way; with ``config``, whether that is the one."""
        with self._lock:
            runs = self._process is not None and self._process.poll() is None
            return runs and (config is None or measurement_file(config, self.data_dir) == self._result)

    def failure(self, config: TrainConfig) -> str:
        """Return why ``config`` could not be measured; "" if it was, or was not tried."""
        result = measurement_file(config, self.data_dir)
        if result not in self._tried or result.exists() or self.measures(config):
            return ""
        events = read_events(result.with_suffix(".log"))
        return next((event.message for event in events if isinstance(event, Failed)), "")

    def stop(self) -> None:
        """Make room for a training at once: a measurement that is cut off may be repeated."""
        with self._lock:
            self._requested = None
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
                self._tried.discard(self._result or Path())
