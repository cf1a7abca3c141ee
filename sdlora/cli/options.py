"""Flags of commands, made from the declarations of their settings."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sdlora.errors import ConfigError

if TYPE_CHECKING:
    from sdlora.families.settings import Model
    from sdlora.generation.settings import Engine
    from sdlora.section import Section

MOST_SCALE = 1000.0
"""Beyond it a scale is a slip of the keyboard."""
TRAINING = ("train", "plan")
"""Commands that take every setting of a run."""
COMMANDS = {"generate": True, "compare": True, "bake": False}
"""Those that take what is said of a base, and whether they draw."""


def declare(parser: argparse.ArgumentParser, command: str) -> None:
    """Give ``command`` a flag for every setting that it takes: of a run, or of a base and perhaps of drawing."""
    if command in TRAINING:
        _declare_run(parser)
    if command not in COMMANDS:
        return
    from sdlora.families.settings import Model
    from sdlora.generation.infotext import SAID_OF_BASE
    from sdlora.generation.settings import Engine

    _declare(parser, Model, SAID_OF_BASE, " (default: as the adapter's run has it, else auto)")
    if COMMANDS[command]:
        _declare(parser, Engine, Engine.model_fields, " (default: {})")


def _declare_run(parser: argparse.ArgumentParser) -> None:
    from sdlora.config import all_settings

    for setting in all_settings():
        value = setting.default
        default = "" if value is None or value == () or setting.field.is_required() else f" (default: {value})"
        takes: dict[str, Any] = {}
        if value == ():
            takes = {"nargs": "+"}
        elif isinstance(value, bool):
            takes = {"nargs": "?", "const": "true"}
        text = (setting.help + default).replace("%", "%%")
        names = [f"--{setting.name}", *(["--memory"] if setting.name == "train.memory" else [])]
        parser.add_argument(*names, metavar="VALUE", default=argparse.SUPPRESS, help=text, **takes)


def overrides(parsed: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run that were given, by their dotted names; ``none`` is None."""
    return {
        name: None if isinstance(value, str) and value.lower() == "none" else value
        for name, value in vars(parsed).items()
        if "." in name
    }


def _declare(parser: argparse.ArgumentParser, section: "type[Section]", names: Iterable[str], end: str) -> None:
    from sdlora.section import settings

    for setting in settings(section):
        if setting.name in names:
            choices = get_args(setting.field.annotation)
            help = setting.help.removesuffix(".").replace("`", "") + end.format(setting.default)
            flag = f"--{setting.name.replace('_', '-')}"
            parser.add_argument(flag, default=setting.default, choices=choices, help=help)


def base_settings(parsed: argparse.Namespace, base: str, adapters: Iterable[Path]) -> dict[str, Any]:
    """What is said of ``base``: by the flags, else by the run that trained the first of ``adapters`` that is of it."""
    from sdlora.api.models import trained_base_settings
    from sdlora.generation.infotext import SAID_OF_BASE

    flags = {name: value for name in SAID_OF_BASE if (value := getattr(parsed, name)) != "auto"}
    return {**trained_base_settings(adapters, base), **flags}


def model(parsed: argparse.Namespace, base: str, adapters: Iterable[Path]) -> "Model":
    """``base`` with its ``base_settings``."""
    from sdlora.families.settings import Model

    return Model(base=base, **base_settings(parsed, base, adapters))


def engine(parsed: argparse.Namespace) -> "Engine":
    """How to draw, as the flags say. Raises ConfigError for what cannot be done on this machine, DeviceError."""
    from sdlora.generation.device import choose_device
    from sdlora.generation.runtime import require_supported
    from sdlora.generation.settings import Engine

    asked = Engine.model_validate({name: getattr(parsed, name) for name in Engine.model_fields})
    require_supported(asked, choose_device(parsed.device))
    return asked


def split_scale(text: str) -> tuple[str, float]:
    """``FILE`` or ``FILE:SCALE`` into both; the scale is 1 if not given (a drive's colon is no scale's)."""
    source, colon, scale = text.rpartition(":")
    try:
        found = (source, float(scale)) if colon and source else (text, 1.0)
    except ValueError:
        return text, 1.0
    if not abs(found[1]) <= MOST_SCALE:
        raise ConfigError(f"{text}: {scale} is no scale; give a number such as 0.8")
    return found
