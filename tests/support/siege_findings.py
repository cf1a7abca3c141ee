"""Defects in the folder of ``tests.support.kill_siege`` at the end of a round."""

import json
import os
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdlora.data.captions import read_caption
from sdlora.errors import SdloraError
from sdlora.events import RunFailed, RunStarted
from sdlora.filesystem.locks import is_held
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats import read_adapter
from sdlora.storage.disk_usage import FREED, free_space
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash
from tests.support.folder_siege import token_of_image
from tests.support.run_outcome import run_outcome
from tests.support.siege_page import VARIANTS, Ledger, name_in_trash

OLD = 2 * 86_400
"""Seconds after which unfinished files may be freed."""


def ledgers(root: Path) -> list[Ledger]:
    """Return what all visitors have written down."""
    return [Ledger(path) for path in sorted((root / "ledger").glob("*.jsonl"))]


def is_trained(name: str) -> bool:
    """Return whether the run called ``name`` is to be trained to its end."""
    return name.partition("-trains-")[2] in VARIANTS


def find_faults(root: Path, undisturbed: Mapping[str, Any]) -> list[str]:
    """Return what is wrong: the runs' outcomes by their variant are to be as ``undisturbed``."""
    data_dir, written = root / "data", ledgers(root)
    return [
        *_bugs(root, written),
        *_outcomes(data_dir, undisturbed),
        *_order(data_dir, written),
        *_conservation(root, written),
        *_incomplete(data_dir),
        *_locks(data_dir),
        *_strays(data_dir, {name for each in written for name in each.items}),
    ]


def _bugs(root: Path, written: list[Ledger]) -> Iterator[str]:
    for ledger in written:
        for step in ledger.steps:
            if step.get("end") == "bug":
                yield f"{step['do']} {step['item']}: {step['message']}"
    for log in (*(root / "logs").iterdir(), *(root / "data" / "runs").glob("*/run.log")):
        if "Traceback" in (text := log.read_text()):
            yield f"{log}: {text[-2000:]}"


def _outcomes(data_dir: Path, undisturbed: Mapping[str, Any]) -> Iterator[str]:
    for run in Run.all(data_dir):
        if is_trained(run.name):
            try:
                made, wanted = json.loads(json.dumps(run_outcome(run))), undisturbed[run.name.rpartition("-")[2]]
                if odd := {what: (made[what], wanted[what]) for what in wanted if made[what] != wanted[what]}:
                    yield f"{run.name}: differs from an undisturbed run: {odd}"
            except (OSError, KeyError) as error:
                yield f"{run.name}: is not whole ({error})"


def _order(data_dir: Path, written: list[Ledger]) -> Iterator[str]:
    """Find runs that were started before others that had been queued before they were.

    Not of runs that a person moved or stopped, or whose process was killed twice before it started.
    """
    waits = []
    for ledger in written:
        for run in (Run(data_dir / "runs" / name) for name in ledger.items if is_trained(name)):
            waits += _waits(run, [step for step in ledger.steps if step["item"] == run.name])
    for name, first, _, started in waits:
        for other, _, last, others_start in waits:
            if name != other and last < first and started < others_start:
                yield f"{name}: queued at {first}, started at {started}: before {other}, {last} and {others_start}"


def _waits(run: Run, steps: list[dict[str, Any]]) -> Iterator[tuple[str, float, float, float]]:
    """Yield each wait of ``run``: when it was queued at the earliest and at the latest, and when it was started."""
    events = run.events()
    starts = [event.time for event in events if isinstance(event, RunStarted)]
    failures = [event.time for event in events if isinstance(event, RunFailed)]
    ends = [0.0, *sorted(starts + failures), float("inf")]
    for begin, end in pairwise(ends):
        own = [step for step in steps if begin <= step["begun"] < end]
        adds = [step for step in own if step["do"] == "add"]
        done = [step["ended"] for step in adds if step.get("end") == "done"]
        if end in starts and done and not any(step["do"] in ("move", "stop") for step in own):
            yield run.name, adds[0]["begun"], done[0], end
        elif end == float("inf") and done:
            yield f"{run.name} (never)", adds[0]["begun"], done[0], end


def _conservation(root: Path, written: list[Ledger]) -> Iterator[str]:
    """Find what is lost, doubled, back from the dead, half there or made by nobody."""
    found = _scan(root)
    known = {name: item for ledger in written for name, item in ledger.items.items()}
    for name in {*found} - {*known}:
        yield f"{name}: is in {found[name]}, and nobody made it"
    for name, item in known.items():
        places = found.get(name, [])
        if len(places) > 1:
            yield f"{name}: is in several places: {places}"
        if not {place for place, _ in places} <= item.places or (not places and "nowhere" not in item.places):
            yield f"{name}: is in {places or 'no place'}, and was told to be in {item.places}"
        for place, path in places:
            try:
                if place == "here" and (problem := _problem(item.kind, name, path)):
                    yield f"{name}: {path}: {problem}"
            except (SdloraError, OSError) as error:
                yield f"{name}: {path}: {error}"


def _scan(root: Path) -> dict[str, list[tuple[str, Path]]]:
    data_dir, found = root / "data", defaultdict(list)
    for path in (data_dir / "runs").glob("[!.]*"):
        found[path.name].append(("here", path))
    for path in (data_dir / "adapters").glob("[!.]*.safetensors"):
        found[read_metadata(path).get("ss_output_name", str(path))].append(("here", path))
    for path in (data_dir / "creations").glob("[!.]*.png"):
        found[token_of_image(path).partition("\n")[0]].append(("here", path))
    for path in (data_dir / "projects").glob("*/[!.]*.png"):
        found[token_of_image(path)].append(("here", path))
    for path in (data_dir / "projects").glob("*/.history/*/*.png"):
        found[token_of_image(path)].append(("trash", path))
    for path in (*(data_dir / "models").glob("[!.]*"), *(root / "made").glob("[!.]*")):
        found[path.name.removesuffix(".zip").removesuffix(".safetensors")].append(("here", path))
    for item in Trash(data_dir).items():
        found[name_in_trash(item.folder)].append(("trash", item.folder))
    return found


def _problem(kind: str, name: str, path: Path) -> str:
    """Return what is wrong with a thing; empty if it is whole."""
    if kind in ("run", "adapter") and path.stem != name:
        return "has another name than it was given"
    if kind == "run" and not (path / "config.toml").is_file():
        return "is no run"
    if kind == "adapter":
        made = "merge" in name
        if missing := [end for end in (".check.json", *([".json"] * made)) if not path.with_suffix(end).is_file()]:
            return f"lacks {missing}"
        read_adapter(path)
    if kind == "upload" and (caption := read_caption(path.with_suffix(".txt"))) != name:
        return f"has the caption {caption!r}"
    if path.suffix == ".zip" and zipfile.ZipFile(path).testzip():
        return "is torn"
    if kind == "file" and path.is_dir() and not (path / "merged.json").is_file():
        return "is half a model"
    return ""


def _incomplete(data_dir: Path) -> Iterator[str]:
    """Find items of the trash from which a part is missing, or that hold what is not deleted."""
    for item in Trash(data_dir).items():
        for number, origin in enumerate(item.origins):
            part = item.folder / str(number)
            if not part.exists() or (part.is_dir() and not any(part.iterdir())):
                yield f"{part}: is missing, once {origin}"
            elif (data_dir / origin).exists() and os.path.samefile(data_dir / origin, part):
                yield f"{part}: is still {origin}"


def _locks(data_dir: Path) -> Iterator[str]:
    yield from (f"{path}: is held" for path in data_dir.rglob("*.lock") if is_held(path))


def _strays(data_dir: Path, known: set[str]) -> Iterator[str]:
    """Find what is left over once all is freed that can be, and is old enough."""
    aged = time.time() - OLD
    for path in (*data_dir.rglob("*"),):
        os.utime(path, (aged, aged), follow_symlinks=False)
    for item in Trash(data_dir).items():  # Their age is written in them.
        fields = json.loads((item.folder / "item.json").read_text())
        (item.folder / "item.json").write_text(json.dumps({**fields, "deleted": aged}))
    try:
        free_space(data_dir, FREED, 1)
    except SdloraError as error:
        yield f"nothing can be freed: {error}"
    for path in data_dir.rglob("*"):
        parts = path.relative_to(data_dir).parts
        if path.suffix == ".lock":
            continue
        if path.name.startswith((".tmp-", ".merging-")) or (parts[0] == "cache" and path.is_file()):
            yield f"{path}: is left over"
        elif parts[0] == "trash" and len(parts) > 1:
            yield f"{path}: is left over in the trash"
        elif parts[0] == "runs" and len(parts) == 2 and path.name not in known:
            yield f"{path}: is a ghost"
        elif parts[0] == "adapters" and len(parts) > 1 and not _beside(path, ".safetensors"):
            yield f"{path}: belongs to no adapter"
        elif path.suffix == ".txt" and len(parts) == 3 and not _beside(path, ".png"):
            if not any(path.parent.glob(f".history/*/{path.stem}.png")):  # Else an undo goes on with it.
                yield f"{path}: is the caption of no picture"
        elif path.suffix in (".asked", ".taken", ".answers"):
            yield f"{path}: is a request of nobody"


def _beside(path: Path, suffix: str) -> bool:
    """Return whether the file is there that ``path`` describes."""
    return path.with_name(f"{path.name.partition('.')[0]}{suffix}").is_file()
