"""The result of an evaluation, and its file ``evaluation.json``. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from sdlora.data.settings import Kind
from sdlora.errors import ConfigError, FileError, FormatError
from sdlora.evaluation.figures import Candidate, Number
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.proposal import Proposal
from sdlora.evaluation.settings import MOST_SEEDS
from sdlora.filesystem.paths import path_problem
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.writing import write_atomic
from sdlora.section import first_problem

FOLDER, FILE, SHEET, IMAGES = "evaluation", "evaluation.json", "sheet.png", "images"
"""Folder of an evaluation in a run's, and the names in it."""
VERSION = 1
MOST_CANDIDATES = 800
"""Checkpoints times scales."""


@dataclass(frozen=True)
class Evaluation:
    """Measures of each checkpoint at each scale, and the one that is proposed."""

    name: str
    kind: Kind
    base: str
    encoder: str
    """Model by which images were compared."""
    clip: str
    """Model by which images were compared with prompts."""
    prompts: EvaluationPrompts
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)]
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MOST_CANDIDATES)]
    proposal: Proposal
    settings: Mapping[str, Annotated[int, Field(ge=-(2**53), le=2**53)] | Number | str | None]
    """How the images were sampled."""
    version: Annotated[int, Field(ge=1)] = VERSION


_EVALUATIONS: TypeAdapter[Evaluation] = TypeAdapter(Evaluation)


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.json`` into ``folder``. Raises FileError."""
    write_atomic(folder / FILE, json.dumps(asdict(evaluation), ensure_ascii=False, indent=1) + "\n")


def result_stamp(folder: Path) -> tuple[int, int] | None:
    """Return what changes with each evaluation in ``folder``; None if there is none."""
    path = _own_file(folder, FILE)
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:  # Gone since.
        return None
    return status.st_mtime_ns, status.st_size


def result_sheet(folder: Path) -> Path | None:
    """Return the contact sheet of the evaluation in ``folder``; None if there is none."""
    return _own_file(folder, SHEET)


def _own_file(folder: Path, name: str) -> Path | None:
    """Return a file of ``folder``. Links are left out: a stranger's may lead to any file."""
    path = folder / name
    linked = folder.is_symlink() or path.is_symlink()
    return path if path.is_file() and not linked else None


def read_evaluation(folder: Path) -> Evaluation:
    """Return the evaluation in ``folder``, which anyone may have written.

    Raises ConfigError if there is none, FormatError if it cannot be read, or is of a later version.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no evaluation yet; run `sdlora evaluate` on the run first")
    if problem := path_problem(path, folder.parent):
        raise FormatError(f"{path}: {problem}")
    try:
        values = read_json(path)
        found = _EVALUATIONS.validate_python(values)
    except ValidationError as error:
        raise FormatError(f"{path}: is no evaluation ({first_problem(error)}); evaluate the run again") from None
    except FileError as error:
        raise FormatError(str(error)) from None
    if found.version > VERSION:
        raise FormatError(
            f"{path}: is of version {found.version}, this program reads {VERSION}; evaluate the run again"
        )
    if any(not 0 <= index < len(found.candidates) for index in found.proposal.numbers):
        raise FormatError(f"{path}: proposes a checkpoint that it does not list; evaluate the run again")
    return found
