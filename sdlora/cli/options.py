"""Flags of commands, derived from the declarations of their settings."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from sdlora.errors import ConfigError
from sdlora.formatting import printable_line

if TYPE_CHECKING:
    from sdlora.families.settings import Model
    from sdlora.generation.settings import Engine
    from sdlora.section import Section

LARGEST_SCALE = 1000.0
"""Beyond it a scale is a slip of the keyboard."""
S = TypeVar("S", bound="Section")


class Command(NamedTuple):
    """A command of ``sdlora``: its name, function, flags and help."""

    name: str
    run: Callable[[argparse.Namespace], int]
    """Runs the command, and returns its exit code."""
    add_arguments: Callable[[argparse.ArgumentParser], None] | None
    """Declares the flags beside ``--data-dir``. Called only for the command that runs: declarations take a moment."""
    help: str


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-dir``."""
    help = "folder of runs and caches (default: $SDLORA_DATA_DIR, or ~/sdlora)"
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=help)


def add_settings(
    parser: argparse.ArgumentParser,
    section: "type[Section]",
    names: Iterable[str] | None = None,
    end: str = " (default: {})",
) -> None:
    """Add a flag for each setting of ``section`` in ``names``, or for all; ``end`` closes its help."""
    from sdlora.section import settings

    declared = {setting.name: setting for setting in settings(section)}
    for name in declared if names is None else names:
        setting = declared[name]
        annotation, default = setting.field.annotation, setting.default
        form: dict[str, Any] = {"metavar": "VALUE", "default": default}
        if get_origin(annotation) is Literal:
            form = {"choices": get_args(annotation), "default": default}
        elif annotation is bool:
            form = {"action": argparse.BooleanOptionalAction, "default": default}
        elif default == ():
            form = {"metavar": "VALUE", "action": "append", "default": []}
        action = parser.add_argument(f"--{name.replace('_', '-')}", **form)
        shown = "" if default in (None, "", ()) else end.format(default)
        action.help = (setting.help.removesuffix(".").replace("`", "") + shown).replace("%", "%%")


def read_settings(parsed: argparse.Namespace, section: "type[S]") -> S:
    """Return ``section`` with the flags' values. Raises ConfigError naming setting, value and reason."""
    return section.checked(**{name: value for name, value in vars(parsed).items() if name in section.model_fields})


def add_run_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of a training run, by its dotted name."""
    from sdlora.config import all_settings
    from sdlora.data.concept_values import CONCEPTS

    for setting in all_settings():
        value = setting.default
        default = "" if value is None or value == () or setting.field.is_required() else f" (default: {value})"
        extra: dict[str, Any] = {}
        if value == ():
            extra = {"nargs": "+"}
        elif isinstance(value, bool):
            extra = {"nargs": "?", "const": "true"}
        text = (setting.help + default).replace("%", "%%")
        names = [f"--{setting.name}", *(["--memory"] if setting.name == "train.memory" else [])]
        parser.add_argument(*names, metavar="VALUE", default=argparse.SUPPRESS, help=text, **extra)
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--concept", dest=CONCEPTS, nargs="+", action="append", metavar="NAME=VALUE", default=argparse.SUPPRESS,
        help="one of several things to learn, such as folder=my-cat trigger=sks class_name=cat; give it once for each, "
        "in place of the preset's pictures",
    )  # fmt: skip
    several.add_argument(
        "--from-kohya", metavar="SOURCE",
        help="train each folder of a project of kohya's trainers as a concept of its own: a folder with "
        "`img/10_ohwx cat` and `reg/1_cat`, or a dataset TOML file",
    )  # fmt: skip


def overrides(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a run that were given, by their dotted names; ``none`` is None. Raises ConfigError."""
    from sdlora.data.concept_values import CONCEPTS, parse_concept

    values: dict[str, Any] = {
        name: None if isinstance(value, str) and value.lower() == "none" else value
        for name, value in vars(parsed).items()
        if "." in name
    }
    if source := getattr(parsed, "from_kohya", None):
        return {**_imported(Path(source)), **values}
    given = getattr(parsed, CONCEPTS, None)
    return values if given is None else {**values, CONCEPTS: [parse_concept(words) for words in given]}


def _imported(source: Path) -> dict[str, Any]:
    """Return the settings of a project of kohya's trainers, and print what became of it."""
    from sdlora.api.training import import_kohya
    from sdlora.data.concept_values import CONCEPTS

    found = import_kohya(source)
    for notice in found.notices:
        print(f"notice: {printable_line(notice)}", file=sys.stderr)
    return {**found.settings, CONCEPTS: found.concepts}


def add_base_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting that overrides a base's scheduler."""
    from sdlora.families.settings import Model
    from sdlora.generation.infotext import BASE_OVERRIDES

    add_settings(parser, Model, BASE_OVERRIDES, " (default: as the adapter's run has it, else auto)")


def add_image_settings(parser: argparse.ArgumentParser, *further: str) -> None:
    """Add a flag for each setting of an image, and for the ``further`` ones of a request."""
    from sdlora.api.generation import GenerationRequest
    from sdlora.generation.settings import ImageSettings

    add_settings(parser, GenerationRequest, (*further, *ImageSettings.model_fields))


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, and a flag for each setting of how images are computed."""
    from sdlora.generation.settings import Engine

    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add_settings(parser, Engine)


def base_settings(parsed: argparse.Namespace, base: str, adapters: Iterable[Path]) -> dict[str, Any]:
    """Return the settings of ``base``: from the flags, else from the run that trained the first of ``adapters``."""
    from sdlora.api.models import trained_base_settings
    from sdlora.generation.infotext import BASE_OVERRIDES

    flags = {name: value for name in BASE_OVERRIDES if (value := getattr(parsed, name)) != "auto"}
    return {**trained_base_settings(adapters, base), **flags}


def base_with_settings(parsed: argparse.Namespace, sources: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return ``--base`` resolved, and its ``base_settings`` for the adapters ``sources``. Raises ConfigError."""
    from sdlora.api.adapters import find_adapter
    from sdlora.api.models import resolve_base

    base = resolve_base(parsed.base, parsed.data_dir)
    return base, base_settings(parsed, base, [find_adapter(source, parsed.data_dir) for source in sources])


def model(parsed: argparse.Namespace, base: str, adapters: Iterable[Path]) -> "Model":
    """Return ``base`` with its ``base_settings``."""
    from sdlora.families.settings import Model

    return Model(base=base, **base_settings(parsed, base, adapters))


def engine(parsed: argparse.Namespace) -> "Engine":
    """Return the flags' ``Engine``. Raises ConfigError for what this machine does not support, DeviceError."""
    from sdlora.api.generation import require_engine
    from sdlora.generation.settings import Engine

    return require_engine(read_settings(parsed, Engine), parsed.device)


def split_scale(text: str) -> tuple[str, float]:
    """Split ``FILE`` or ``FILE:SCALE``; the scale is 1 if not given (a drive's colon is no scale's)."""
    source, colon, scale = text.rpartition(":")
    try:
        found = (source, float(scale)) if colon and source else (text, 1.0)
    except ValueError:
        return text, 1.0
    if not abs(found[1]) <= LARGEST_SCALE:
        raise ConfigError(f"{text}: {scale} is no scale; give a number such as 0.8")
    return found
