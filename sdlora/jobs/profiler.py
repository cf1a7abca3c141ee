"""Profiling of runs in a process of its own, while nothing else holds the device."""

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdlora.config import TrainConfig
from sdlora.errors import BusyError, SdloraError, error_class
from sdlora.families.base_models import BUNDLED
from sdlora.jobs.run_estimate import Measurement, _result, cached_measurement
from sdlora.python_process import spawn_python
from sdlora.storage.locks import device_busy

PHASE = "phase: "
"""Begins the lines by which the process tells what it does."""
LOOK_SECONDS = 0.1
CALM_SECONDS = 3.0
"""What is wished for is measured once it has been left unchanged for so long."""


class Profiler:
    """Measures one config at a time in a process, while no other has the device."""

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._result: Path | None = None
        self._requested: tuple[float, TrainConfig] | None = None
        self._tried: set[Path] = set()
        self._over = threading.Event()
        self._lock = threading.RLock()

    def watch(self, seconds: float = 1.0) -> None:
        """Measure what is wished for in the background, until ``close``."""

        def loop() -> None:
            while not self._over.wait(seconds):
                self.tick()

        threading.Thread(target=loop, daemon=True).start()

    def close(self) -> None:
        """End, and what is being measured with it."""
        self._over.set()
        self.stop()

    def request(self, config: TrainConfig) -> None:
        """Have ``config`` measured after a moment of calm, in place of what was wished before.

        Only where its base is a bundled, thus small one, it was not tried before, and nothing has the device.
        """
        result = _result(config, self.data_dir)
        with self._lock:
            known = cached_measurement(config, self.data_dir) is not None
            wanted = config.model.base in BUNDLED and not known and (result.exists() or result not in self._tried)
            self._requested = (time.monotonic(), config) if wanted and not device_busy(self.data_dir) else None

    def is_pending(self, config: TrainConfig) -> bool:
        """Whether ``config`` is wished for, and will be measured after a moment of calm."""
        with self._lock:
            return self._requested is not None and _result(self._requested[1], self.data_dir) == _result(
                config, self.data_dir
            )

    def tick(self) -> None:
        """Begin with what is wished for, if it was left in peace for a moment and the device is free."""
        with self._lock:
            if self._requested is None or time.monotonic() - self._requested[0] < CALM_SECONDS:
                return
            config, self._requested = self._requested[1], None
            with suppress(SdloraError):  # What is wrong with it is told where it was wished for.
                self.start(config)

    def start(self, config: TrainConfig, rungs: bool = False) -> None:
        """Measure ``config`` now, and with ``rungs`` count what less memory would take.

        Raises BusyError while another is measured, trained or drawn.
        """
        with self._lock:
            if self.measures():
                raise BusyError("something is being measured already; wait a moment")
            if device_busy(self.data_dir):
                raise BusyError("a training or a drawing has the device; measuring waits until it is free")
            self._requested, self._result = None, _result(config, self.data_dir)
            self._tried.add(self._result)
            self._result.unlink(missing_ok=True)  # One that is void by now would hide why this one fails.
            config_file = self._result.with_suffix(".toml")
            config.save(config_file)
            command = ["-m", "sdlora.jobs.profile_worker", str(self.data_dir), str(config_file), str(self._result)]
            command += ["rungs"] if rungs else []
            with open(self._result.with_suffix(".log"), "wb") as log:
                self._process = spawn_python(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def finish(self, config: TrainConfig, on_phase: Callable[[str], object]) -> Measurement:
        """Measure ``config``, with its rungs, and wait for it; ``on_phase`` is told what is being done.

        If that raises, measuring ends.
        Raises BusyError as ``start`` does, and the SdloraError that the run would fail with.
        """
        self.start(config, rungs=True)
        process, log, said = self._process, _result(config, self.data_dir).with_suffix(".log"), ""
        assert process is not None
        try:
            while process.poll() is None:
                time.sleep(LOOK_SECONDS)
                phases = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(PHASE)]
                if phases and phases[-1] != said:
                    said = phases[-1]
                    on_phase(said.removeprefix(PHASE))
        except BaseException:
            self.stop()
            raise
        found = cached_measurement(config, self.data_dir)
        if process.returncode or found is None:
            raise error_class(process.returncode)(self.failure(config) or f"measuring was cut off; see {log}")
        return found

    def measures(self, config: TrainConfig | None = None) -> bool:
        """Whether something is being measured now; with ``config``, whether that is."""
        with self._lock:
            runs = self._process is not None and self._process.poll() is None
            return runs and (config is None or _result(config, self.data_dir) == self._result)

    def failure(self, config: TrainConfig) -> str:
        """Why ``config`` could not be measured; nothing where it was, or was not tried."""
        result = _result(config, self.data_dir)
        if result not in self._tried or result.exists() or self.measures(config):
            return ""
        with suppress(OSError):
            lines = result.with_suffix(".log").read_text(errors="replace").splitlines()
            return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
        return ""

    def stop(self) -> None:
        """Make room for a training, at once: a measurement that is cut off may be made again."""
        with self._lock:
            self._requested = None
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
                self._tried.discard(self._result or Path())
