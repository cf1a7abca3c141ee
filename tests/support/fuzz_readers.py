"""Every reader of foreign files, given changed files: each answers with a value, or with one sentence.

``python -m tests.support.fuzz_readers --count 20000 --seed 1 --out outcomes.jsonl`` appends a line a case and goes on
where it ended: a case that was begun and has no outcome ended the process. ``--case N`` does that case alone, and shows
its traceback. A case's reader, files and changes follow from the seed and its number.

An outcome is a defect if it is an error other than ``SdloraError``, a message with a line of more than ``LONGEST``
letters, takes more than ``SECONDS`` of CPU or ``MEMORY`` bytes, or anything outside the case's folder is
written, run or unpickled.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from unittest import mock

import orjson

from sdlora.errors import SdloraError
from tests.support import foreign_readers as readers
from tests.support import fuzz_samples as samples
from tests.support.mutations import mutate_folder

LONGEST = 600
SECONDS = 5.0
MEMORY = 500 << 20
MOST_LINES = 30
HANGS = 60
"""Seconds of a clock after which a case is ended."""


class Reader(NamedTuple):
    """Valid files, and what the product does with such files; ``share`` is how many cases it gets beside others."""

    make: Callable[[Path, random.Random], object]
    read: Callable[[Path], object]
    share: int = 10


READERS: dict[str, Reader] = {
    "adapter": Reader(samples.adapter, readers.adapter, 30),
    "peft-folder": Reader(samples.peft_folder, readers.peft, 15),
    "base-folder": Reader(samples.base_folder, readers.base, 8),
    "base-loaded": Reader(samples.base_folder, readers.load_base, 3),
    "base-file": Reader(samples.single_file, readers.single_file_base, 8),
    "vocabulary": Reader(samples.vocabulary, readers.vocabulary, 4),
    "clip": Reader(samples.clip_folder, readers.clip, 2),
    "image": Reader(samples.image, readers.image, 30),
    "data-folder": Reader(samples.data_folder, readers.data_folder, 15),
    "zip": Reader(samples.zip_file, readers.uploads, 20),
    "prompt": Reader(samples.prompt, readers.prompt),
    "axis": Reader(samples.axis, readers.axis),
    "infotext": Reader(samples.infotext, readers.recall),
    "preset": Reader(samples.preset, readers.preset, 15),
    "run": Reader(samples.run, readers.run, 20),
    "grid": Reader(samples.grid, readers.grid),
    "project": Reader(samples.project, readers.project),
    "trash": Reader(samples.trash, readers.trash),
    "request": Reader(samples.request, readers.request, 5),
    "latents": Reader(samples.latents, readers.latents, 5),
    "measurement": Reader(samples.measurement, readers.measurement, 5),
    "variables": Reader(samples.variables, readers.variables, 5),
    "names": Reader(samples.words, readers.names, 5),
}
_TURNS = [name for name, reader in READERS.items() for _ in range(reader.share)]


class Outcome(NamedTuple):
    """A reader's answer to a case; ``defect`` is empty where that is as it should be."""

    case: int
    reader: str
    change: str
    result: str
    defect: str = ""
    seconds: float = 0.0


class Watch:
    """Refuses and notes, by Python's audit events, what is written outside a folder, started, or unpickled."""

    WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
              "shutil.rmtree"}  # fmt: skip
    RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in self.RUNS:
            self._refuse(f"{event} {str(arguments)[:200]}")
        elif event in self.WRITES or (event == "open" and self._writes(arguments)):
            paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            for path, folder in zip(paths, self._folders(event, arguments), strict=False):
                self._require_inside(event, path, folder)

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    @staticmethod
    def _folders(event: str, arguments: tuple[Any, ...]) -> list[str]:
        """Return the folders that relative paths are in: those of open handles, or the working directory."""
        handles = () if event == "open" else arguments[2:] if event in ("os.rename", "os.link") else arguments[-1:]
        return [
            os.readlink(f"/proc/self/fd/{each}") if type(each) is int and each > 2 else "." for each in handles
        ] or ["."]

    def _require_inside(self, event: str, path: Any, folder: str) -> None:
        allowed = (str(self.folder), "/dev/null", "/tmp/torchinductor")
        if not isinstance(path, str | bytes | Path):
            return
        place = os.path.abspath(os.path.join(folder, os.fsdecode(path)))
        if not place.startswith(allowed):
            self._refuse(f"{event} {place!r}"[:200])

    def _refuse(self, act: str) -> None:
        self.seen.append(act)
        raise PermissionError(errno.EPERM, "outside the case's folder", act)


_watch: list[Watch] = []


@contextmanager
def _watched(folder: Path) -> Iterator[list[str]]:
    if not _watch:
        _watch.append(Watch())
    _watch[0].folder, _watch[0].seen = folder, []
    try:
        yield _watch[0].seen
    finally:
        _watch[0].folder = None


def run_case(case: int, seed: int, keep: bool = False, name: str = "") -> Outcome:
    """Make the files of ``case``, change them, and have their reader read them; ``name`` chooses the reader."""
    folder = Path(mkdtemp(prefix="fuzz-case-"))
    try:
        with mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(folder / "page"), "HOME": str(folder / "home")}):
            return _run_case(case, random.Random(f"{seed}:{case}"), folder, name)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"files: {folder}", file=sys.stderr)


def _run_case(case: int, rng: random.Random, folder: Path, name: str) -> Outcome:
    name = name or _TURNS[rng.randrange(len(_TURNS))]
    READERS[name].make(folder, rng)
    change = ", ".join(mutate_folder(folder, rng) for _ in range(rng.choice((1, 1, 1, 2))))
    start, before = time.process_time(), peak_memory(reset=True)
    with _watched(folder) as seen:
        result, defect = _outcome(lambda: READERS[name].read(folder))
    seconds, grown = time.process_time() - start, peak_memory() - before
    if seconds > SECONDS:
        defect = defect or f"took {seconds:.1f} s"
    if grown > MEMORY:
        defect = defect or f"took {grown >> 20} MiB"
    return Outcome(case, name, change, result, defect or "; ".join(seen), round(seconds, 2))


def _outcome(read: Callable[[], object]) -> tuple[str, str]:
    """Return what a reader answered, and what is wrong with that."""
    try:
        value = read()
        orjson.dumps(value, default=str)  # As the page sends it: no lone surrogates.
    except SdloraError as error:
        return f"{type(error).__name__}: {str(error)[:200]}", _problem(str(error))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "", f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    return "value", ""


def _problem(message: str) -> str:
    lines = message.split("\n")
    if len(lines) > MOST_LINES:  # Settings and a folder's files are listed, one a line.
        return f"a message of {len(lines)} lines"
    if not message.strip() or any(len(line) > LONGEST for line in lines):
        return f"a message of {len(message)} letters"
    odd = next((letter for line in lines for letter in line if not letter.isprintable()), "")
    return f"a message with {odd!r}" if odd else ""


def peak_memory(reset: bool = False) -> int:
    """Return the most bytes that this process had in memory since it was ``reset``; 0 where that is not told."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next((line.split()[1] for line in lines if line.startswith("VmHWM")), "0"))


def _stop(number: int, frame: Any) -> None:
    raise TimeoutError(f"not done after {HANGS} s")


def fuzz(count: int, seed: int, out: Path) -> list[Outcome]:
    """Do the cases of ``seed`` up to ``count`` that have no outcome in ``out`` yet; return all outcomes."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    begun = max((line["case"] for line in lines), default=-1)
    known = {line["case"]: Outcome(**line) for line in lines if "reader" in line}
    if begun >= 0 and begun not in known:
        known[begun] = Outcome(begun, "?", "", "", "ended the process")
    signal.signal(signal.SIGALRM, _stop)
    with open(out, "a", encoding="utf-8") as file:
        if begun in known and known[begun].reader == "?":
            file.write(json.dumps(known[begun]._asdict()) + "\n")
        for case in range(begun + 1, count):
            file.write(json.dumps({"case": case}) + "\n")
            file.flush()
            signal.alarm(HANGS)
            known[case] = run_case(case, seed)
            signal.alarm(0)
            file.write(json.dumps(known[case]._asdict()) + "\n")
    return [known[case] for case in sorted(known)]


def main() -> int:
    """Fuzz, and print a table of the outcomes by reader and all defects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--case", type=int)
    flags = parser.parse_args()
    if flags.case is not None:
        print(run_case(flags.case, flags.seed, keep=True))
        return 0
    outcomes = fuzz(flags.count, flags.seed, flags.out)
    defects = [outcome for outcome in outcomes if outcome.defect]
    for name in READERS:
        own = Counter(outcome.result.partition(":")[0] for outcome in outcomes if outcome.reader == name)
        print(f"{name:12} {own.total():6}  {dict(own)}")
    for outcome in defects:
        print(outcome)
    print(f"{len(outcomes)} cases, {len(defects)} defects")
    return bool(defects)


if __name__ == "__main__":
    sys.exit(main())
