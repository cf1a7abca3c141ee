"""Infotext: A1111's text of an image's settings, written, parsed, and read back as settings of a request.

All of A1111's versions are read: schedule types within the sampler's name, quoted values, no negative line. What is
not taken over is reported in a remark.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from sdlora.errors import ConfigError, FileError
from sdlora.families.settings import Model
from sdlora.formats import lora_tags
from sdlora.formatting import one_line
from sdlora.generation.images import embedded_texts
from sdlora.generation.samplers import canonical_sampler, split_sampler
from sdlora.generation.settings import LARGEST_SEED, GenerationSettings, ImageSettings
from sdlora.section import settings

NEGATIVE = "Negative prompt:"


SETTING = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A1111's pattern of a setting, with names of bounded length: without it, a long line takes quadratic time."""


BASE_OVERRIDES: Mapping[str, str] = {"prediction_type": "Prediction type", "zero_terminal_snr": "Zero terminal SNR"}
"""Settings of ``Model`` that override the base's scheduler config, and their names in an infotext."""


def base_overrides(model: Model) -> dict[str, str]:
    """Return the settings of ``model`` that override the base's own scheduler config."""
    return {name: value for name in BASE_OVERRIDES if (value := getattr(model, name)) != "auto"}


NEEDS_QUOTES = re.compile(r'[,:\n\r"]|^\s|\s$')


@dataclass(frozen=True)
class Parameters:
    """A parsed infotext: prompts, and settings by their names in it, as text."""

    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def format_parameters(parameters: Parameters) -> str:
    """Return the infotext of ``parameters``. Both the negative line and the settings are always written."""
    settings = ", ".join(f"{name}: {_quote(value)}" for name, value in parameters.settings.items())
    return f"{parameters.prompt}\n{NEGATIVE} {parameters.negative}\n{settings}"


def parse_parameters(text: str) -> Parameters:
    """Parse an infotext, ours or another tool's. What cannot be parsed becomes prompt."""
    *lines, last = text.split("\n")
    found = SETTING.findall(last)
    if not (last.startswith("Steps: ") or len(found) >= 3):
        lines, found = [*lines, last], []
    start = next((n for n, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    return Parameters("\n".join(lines[:start]), negative, {name: _unquote(value) for name, value in found})


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if NEEDS_QUOTES.search(value) else value


def _unquote(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()


def _infotext_name(setting: str) -> str:
    """Return A1111's name of a number: ``clip_skip`` is ``Clip skip``."""
    return {"cfg": "CFG scale"}.get(setting, setting.replace("_", " ").capitalize())


DECLARED = {setting.name: setting for setting in settings(GenerationSettings)}
LIMITS = {name: DECLARED[name].bounds for name in DECLARED if DECLARED[name].bounds != (-math.inf, math.inf)}
"""Least and largest value of each number, as declared."""
LIMITS["seed"] = (0, LARGEST_SEED)  # An image has a definite seed.
NUMBERS = {_infotext_name(name): name for name in LIMITS if name not in ("width", "height")}
"""Names of numbers in an infotext, and the settings that they are; ``Size`` holds width and height."""
READ = {*NUMBERS, *BASE_OVERRIDES.values(), "Sampler", "Schedule type", "Size", "Model"}
NO_EFFECT = {"Model hash", "Lora hashes", "Version", "Hashes", "User", "Module 1", "Module 2"}
"""Settings that by themselves change nothing of an image."""


def params_to_infotext(params: ImageSettings, seed: int, base: Mapping[str, str]) -> dict[str, str]:
    """Return the infotext's settings of an image, in A1111's order; ``base`` holds those of the base model.

    Numbers beyond A1111's usual ones stand at the end, and only where they are not as by default.
    """
    sampler, schedule = split_sampler(params.sampler)
    written = {
        "Steps": str(params.steps),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{params.cfg:g}",
        "Seed": str(seed),
        "Size": f"{params.width}x{params.height}",
        **base,
    }
    for key, name in NUMBERS.items():
        value = getattr(params, name, None)
        if key not in written and value != DECLARED[name].default:
            written[key] = f"{value:g}" if isinstance(value, float) else str(value)
    return written


@dataclass(frozen=True)
class RecalledSettings:
    """Settings read from an infotext, and a remark on each that could not be taken over."""

    prompt: str = ""
    """Prompt without the tags of ``scales``; a tag with two numbers stays."""
    negative: str = ""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Scales of the adapters that exist here, by name."""
    sampler: str = ""
    """Sampler with its schedule type, as the table of samplers spells it."""
    model: str = ""
    """Name of the base model, without its folder."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """``steps``, ``cfg``, ``seed``, ``clip_skip``, ``width`` and ``height``, as far as given."""
    remarks: tuple[str, ...] = ()
    base_settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of ``BASE_OVERRIDES``."""


def recall_image(path: Path, adapters: Collection[str]) -> RecalledSettings:
    """Return the settings in the image at ``path``. Raises FileError if it is no image, or holds none."""
    found = embedded_texts(path)
    if "parameters" in found:
        return recall_text(found["parameters"], adapters)
    if {"prompt", "workflow"} & found.keys():
        raise FileError(f"{path.name}: holds a ComfyUI workflow, which is not read here; copy its prompt by hand")
    raise FileError(f"{path.name}: holds no settings; other programs may have removed them when they saved it")


def recall_text(text: str, adapters: Collection[str]) -> RecalledSettings:
    """Return the settings of an infotext; ``adapters`` are the names of those that exist here.

    Raises ConfigError if there is no text.
    """
    lines = text.strip().replace("\r\n", "\n")
    if not lines:
        raise ConfigError("There is no text yet: paste the settings of a picture, as A1111 shows them.")
    read = parse_parameters(lines)
    remarks: list[str] = []
    if not read.settings:
        remarks.append("No line of settings was found: only the prompt is filled in.")
    prompt, scales = _adapters(read.prompt, adapters, remarks)
    sampler = _sampler(read, remarks)
    numbers = _numbers(read.settings, remarks)
    overrides = _base_overrides(read.settings, remarks)
    rest = [name for name in read.settings if name not in READ | NO_EFFECT]
    if rest:
        remarks.append(f"Not taken over, as there is no such field here: {one_line(', '.join(rest), 300)}.")
    model = read.settings.get("Model", "")
    return RecalledSettings(prompt, read.negative, scales, sampler, model, numbers, tuple(remarks), overrides)


def _adapters(prompt: str, existing: Collection[str], remarks: list[str]) -> tuple[str, dict[str, float]]:
    """Return the prompt without its tags, and the scales of the existing adapters."""
    try:
        text, tagged = lora_tags.parse_lora_tags(prompt)
    except ConfigError as error:
        remarks.append(f"{error}.")
        return prompt, {}
    scales: dict[str, float] = {}
    for name, scale in tagged.items():
        tag = lora_tags.lora_tag(name, scale)
        if name not in existing:
            remarks.append(f"There is no adapter {one_line(name, 60)!r} here: {one_line(tag, 80)} was left out.")
        elif isinstance(scale, float) and -2 <= scale <= 2:
            scales[name] = scale
        else:  # Beyond the range of a slider.
            text = f"{text} {tag}"
    return text, scales


def _sampler(read: Parameters, remarks: list[str]) -> str:
    """Return the sampler with its schedule type, without an unknown type; empty if the sampler is unknown."""
    given, schedule = read.settings.get("Sampler", ""), read.settings.get("Schedule type", "")
    for name in (f"{given} {schedule}", given) if given else ():
        try:
            found = canonical_sampler(name)
        except ConfigError:
            continue
        if name == given and schedule:
            remarks.append(f"{found} has no schedule type {one_line(schedule, 40)!r} here: its own is taken.")
        return found
    if given:
        remarks.append(f"There is no sampler {one_line(given, 40)!r} here: the sampler stays as it is.")
    return ""


def _base_overrides(settings: Mapping[str, str], remarks: list[str]) -> dict[str, str]:
    """Return the overrides of the base's scheduler config that can be taken over."""
    overrides: dict[str, str] = {}
    for name, key in BASE_OVERRIDES.items():
        choices = get_args(Model.model_fields[name].annotation)
        if settings.get(key) in choices:
            overrides[name] = settings[key]
        elif key in settings:
            remarks.append(f"{key} {settings[key][:40]!r} is unknown here: give {', '.join(choices)}; it stays auto.")
    return overrides


def _numbers(settings: Mapping[str, str], remarks: list[str]) -> dict[str, float]:
    """Return the numbers that can be taken over."""
    texts = {name: settings[key] for key, name in NUMBERS.items() if key in settings}
    width, times, height = settings.get("Size", "").partition("x")
    if times:
        texts |= {"width": width, "height": height}
    elif width:
        remarks.append(f"Size {width[:40]!r} cannot be read: the size stays as it is.")
    numbers: dict[str, float] = {}
    for name, text in texts.items():
        least, most = LIMITS[name]
        try:
            number = float(text) if DECLARED[name].field.annotation is float else int(text)
        except ValueError:
            number = float("nan")
        if least <= number <= most:
            numbers[name] = number
        else:
            remarks.append(f"{name.replace('_', ' ')} = {text[:40]}: give {least} to {most}; it stays as it is.")
    return numbers


def read_parameters(path: Path) -> Parameters | None:
    """Return the parameters in an image file, or None. Raises FileError if it is no image."""
    text = embedded_texts(path).get("parameters")
    return None if text is None else parse_parameters(text)
