"""Errands that need torch, run in a process of their own so that a front end imports none: checks and merges.

``python -m sdlora.runs.clerk`` reads one errand as JSON from its input, and tells in lines of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sdlora.errors import FileError, SdloraError
from sdlora.formats.check import Base, Check, check_adapter
from sdlora.notes import noted
from sdlora.runs.process import PATIENT


def check(files: Sequence[Path], base: str = "") -> Iterator[Check]:
    """The self-test of each file against ``base`` (or of the files alone), in their order, as each is done.

    Raises FileError if the base cannot be had, in its own words.
    """
    for told in _send({"check": [str(path) for path in files], "base": base}):
        lists = {name: tuple(value) for name, value in told.items() if isinstance(value, list)}
        yield Check(**{**told, **lists, "facts": tuple((name, value) for name, value in told["facts"])})


def merge(
    base: str,
    adapters: Sequence[tuple[str, Path, float]],
    output: Path,
    dtype: str = "fp16",
    base_settings: Mapping[str, Any] = MappingProxyType({}),
    on_note: Callable[[str], object] = str,
) -> Iterator[str]:
    """``sdlora.generation.merge.merge`` in a process of its own, telling what is being done, until it is written.

    ``base_settings`` are a ``Request``'s; ``on_note`` is told what is worth knowing of the merged model.
    Raises FileError with its error's words.
    """
    listed = [(name, str(path), scale) for name, path, scale in adapters]
    model = {"base": base, **base_settings}
    for told in _send({"merge": listed, "model": model, "output": str(output), "dtype": dtype}):
        if "note" in told:
            on_note(told["note"])
        else:
            yield str(told["phase"])


def _send(errand: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process tells of ``errand``, line by line; its end is waited for, or brought about."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdlora.runs.clerk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**PATIENT, **os.environ},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    error = ""
    try:
        process.stdin.write(json.dumps(errand).encode())
        process.stdin.close()
        for line in process.stdout:
            told = json.loads(line)
            if "error" in told:
                error = told["error"]
            else:
                yield told
        if process.wait() or error:
            raise FileError(error or f"the process ended (exit code {process.returncode}); try again")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _check(errand: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    from sdlora.families.skeleton import skeleton

    name = errand["base"]
    base = Base(Path(name).name, *skeleton(name)) if name else None
    for path in errand["check"]:
        tell(asdict(check_adapter(Path(path), base)))


def _merge(errand: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    from sdlora.families.settings import Model
    from sdlora.generation.merge import merge

    adapters = [(name, Path(path), scale) for name, path, scale in errand["merge"]]
    model = Model.model_validate(errand["model"])
    with noted(lambda note: tell({"note": note})):
        merge(model, adapters, Path(errand["output"]), errand["dtype"], lambda phase: tell({"phase": phase}))


def main() -> int:
    errand = json.loads(sys.stdin.buffer.read())
    output, sys.stdout = sys.stdout, sys.stderr  # Libraries' own words must not come between.

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=output, flush=True)

    try:
        (_check if "check" in errand else _merge)(errand, tell)
        return 0
    except SdloraError as error:
        tell({"error": str(error)})
        return error.exit_code
    except Exception as error:  # The page is told of a bug too, instead of nothing.
        tell({"error": f"{type(error).__name__}: {error} (a bug)"})
        return 1


if __name__ == "__main__":
    sys.exit(main())
