"""Errands that need torch, each run in a process of its own so that a front end imports none (``errands`` has them).

``python -m sdlora.jobs.tool_process`` reads one errand as JSON from its input, and tells in lines of JSON.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sdlora.errors import FileError, SdloraError
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.python_process import environment


class ToolProgress(NamedTuple):
    """What is being done, and how much of it is; a ``total`` of 0 where there is no telling."""

    phase: str
    done: int = 0
    total: int = 0


class ToolJob:
    """One errand. Going over it starts its process, and tells where it stands until it is done; then ``answer`` and
    ``notes`` (what is worth knowing) are there. Whoever stops going over it ends the process.

    Raises FileError with the words of the process's error.
    """

    def __init__(self, name: str, /, **values: Any):
        self.name, self.values = name, values
        self.answer: Any = None
        self.notes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def __iter__(self) -> Generator[ToolProgress]:
        for told in self.messages():
            if "stage" in told:
                yield ToolProgress(*told["stage"])

    def finish(self, on_stage: Callable[[ToolProgress], object] = str) -> Any:
        """Go over it to the end, and return the answer."""
        for stage in self:
            on_stage(stage)
        return self.answer

    def stop(self) -> None:
        """End the process, if it runs; who goes over it gets a FileError that says so."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def messages(self) -> Generator[dict[str, Any]]:
        """All that the process tells, line by line; its end is waited for, or brought about."""
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "sdlora.jobs.tool_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        error = ""
        try:
            process.stdin.write(json.dumps({"errand": self.name, **self.values}, default=str).encode())
            process.stdin.close()
            for line in process.stdout:
                told = json.loads(line)
                error = told.get("error", error)
                self.answer = told.get("answer", self.answer)
                self.notes += [told["note"]] if "note" in told else []
                yield told
            if self._stopped:
                raise FileError("Stopped; nothing was written.")
            if process.wait() or error:
                raise FileError(error or f"the process ended (exit code {process.returncode}); try again")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def check_adapters(files: Sequence[Path], base: str = "") -> Iterator[AdapterCheck]:
    """The self-test of each file against ``base`` (or of the files alone), in their order, as each is done.

    Raises FileError if the base cannot be had, in its own words.
    """
    for told in ToolJob("check", files=list(files), base=base).messages():
        if "item" in told:
            found = told["item"]
            lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
            yield AdapterCheck(**{**found, **lists, "facts": tuple((name, value) for name, value in found["facts"])})


def export_job(file: Path, output: Path, format: str = "kohya", dtype: str = "fp32") -> ToolJob:
    """Write the adapter ``file`` in ``format``'s keys to ``output``; PEFT's folder as a ``.zip`` of it.

    The answer is what the self-test of what was written found, as a sentence.
    """
    return ToolJob("export", file=file, output=output, format=format, dtype=dtype)


def bake_job(
    base: str,
    adapters: Sequence[tuple[str, Path, float]],
    output: Path | None = None,
    dtype: str = "fp16",
    base_settings: Mapping[str, Any] = MappingProxyType({}),
) -> ToolJob:
    """``sdlora.editing.bake`` of ``adapters`` (name, file, scale); ``base_settings`` are a ``GenerationRequest``'s.

    The output may be said later, as one of ``values``.
    """
    model = {"base": base, **base_settings}
    return ToolJob("bake", adapters=list(adapters), model=model, output=output, dtype=dtype)


def inspect_layers_job(file: Path, plot: Path | None = None, base: str = "") -> ToolJob:
    """Look into the adapter ``file`` layer by layer, and draw that to ``plot``, a PNG file (one of ``values``).

    The answer is a list of ``[path, norm, rank, effective rank, rank that holds 95 %]``, the largest norm first.
    """
    return ToolJob("look", file=file, plot=plot, base=base)


def main() -> int:
    errand = json.loads(sys.stdin.buffer.read())
    output, sys.stdout = sys.stdout, sys.stderr  # Libraries' own words must not come between.

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=output, flush=True)

    try:
        from sdlora.jobs import tool_jobs

        tool_jobs.run_tool(errand.pop("errand"), errand, send)
        return 0
    except SdloraError as error:
        send({"error": str(error)})
        return error.exit_code
    except Exception as error:  # The page is told of a bug too, instead of nothing.
        send({"error": f"{type(error).__name__}: {error} (a bug)"})
        return 1


if __name__ == "__main__":
    sys.exit(main())
