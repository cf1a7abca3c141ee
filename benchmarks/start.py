"""Seconds until each front end answers: ``python -m benchmarks.start --json``.

Every time is that of a fresh process, from its start: of the help to its end, of the page to the first whole page that
``GET /`` gives. Files are in the system's cache after the first round, which is left out.
"""

import argparse
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.plot import Bar, bars
from benchmarks.report import add_options, between, columns, result, rounded, spread, tell

ROOT = Path(__file__).parents[1]
TO_REACH = {"sdlora --help": 1.0, "first page": 5.0}
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import sdlora": ["-c", "import sdlora"],
    "sdlora --help": ["-m", "sdlora.cli.main", "--help"],
    "sdlora train --help": ["-m", "sdlora.cli.main", "train", "--help"],
}
"""``python -c pass`` is the floor of all: Python itself."""
PAGE = "first page"
MARK = "gradio"
"""A word of the page's own markup."""
PATIENCE = 120.0
LOOK = 0.02


def command(words: list[str]) -> tuple[float, float]:
    """Seconds by the wall, and of processor time, of a Python process with these arguments."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - begun, os.times()
    busy = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return wall, busy


def page(port: int) -> tuple[float, float]:
    """Seconds from the start of ``app.py`` until its page is there, and its processor time by then."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--data-dir", folder]
        begun = time.perf_counter()
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while not _there(port):
                if server.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    raise SystemExit("the page did not start")
                time.sleep(LOOK)
            wall, times = time.perf_counter() - begun, psutil.Process(server.pid).cpu_times()
        finally:
            server.terminate()
            server.wait(30)
    return wall, times.user + times.system


def _there(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            return answer.status == 200 and MARK in answer.read().decode()
    except (urllib.error.URLError, ConnectionError, http.client.HTTPException):
        return False


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*COMMANDS, PAGE)}
    for turn in range(options.turns + 1):
        for name, times in taken.items():
            one = page(options.port) if name == PAGE else command(COMMANDS[name])
            if turn:
                times.append(one)
        print(*(f"{name} {times[-1][0]:.2f} s" for name, times in taken.items() if times), file=sys.stderr)
    rows = {
        name: {"seconds": spread([wall for wall, _ in times]), "processor": spread([busy for _, busy in times])}
        for name, times in taken.items()
    }
    return result("start", words, {"turns": options.turns}, commands=rows)


def slow_imports(words: list[str], least: float = 0.05) -> dict[str, float]:
    """Seconds that importing each module takes with all that it imports, where that is ``least`` or more."""
    output = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    found = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| {1,5}(\S+)$", output, re.MULTILINE)
    return {name: rounded(int(micro) / 1e6, 3) for micro, name in found if int(micro) / 1e6 >= least}


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="processes of each kind that are timed (7)")
    parser.add_argument("--port", type=int, default=7995, help="the page's (7995)")
    parser.add_argument("--imports", action="store_true", help="only say which imports take 50 ms or more, and end")
    add_options(parser)
    return parser.parse_args(words)


def table(found: dict[str, Any]) -> list[str]:
    rows: list[list[object]] = [["start", "seconds", "processor s", "to reach"]]
    for name, row in found["commands"].items():
        rows.append([name, between(row["seconds"]), between(row["processor"]), TO_REACH.get(name, "")])
    return columns(rows)


def chart(found: dict[str, Any]) -> Image.Image:
    floor = found["commands"]["python -c pass"]["seconds"]["median"]
    rows = [
        Bar(name, row["seconds"]["median"], row["seconds"]["quartiles"], TO_REACH.get(name), floor)
        for name, row in found["commands"].items()
    ]
    return bars("Seconds until each front end answers", "s", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    if options.imports:
        for name, command_words in COMMANDS.items():
            print(name, *columns(list(slow_imports(command_words).items()) or [["nothing", ""]]), sep="\n  ")
        return
    with redirect_stdout(sys.stderr):
        found = measure(options, words)
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
