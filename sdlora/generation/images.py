"""Generated pictures on disk: PNG files that carry AUTOMATIC1111's ``parameters`` text, and its reading.

The text is the prompt, a line ``Negative prompt: ...`` and a line of settings, ``Steps: 25, Sampler: ..., Seed: 1``
(modules/infotext_utils.py of stable-diffusion-webui). The format has no escape for a prompt whose own line begins
with ``Negative prompt:``: what follows such a line reads back as part of the negative prompt.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.errors import ConfigError, FileError
from sdlora.files import as_path, existing_path, unused_path, write_atomic

if TYPE_CHECKING:
    from PIL import Image

NEGATIVE = "Negative prompt:"
SETTING = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A1111's, with names of a bounded length: without it, a long line without a colon takes the square of its length."""
SAID_OF_BASE: Mapping[str, str] = {"prediction_type": "Prediction type", "zero_terminal_snr": "Zero terminal SNR"}
"""What may be said of a base where its own files do not tell: ``Model``'s settings, and their names in the text."""
NEEDS_QUOTES = re.compile(r'[,:\n\r"]|^\s|\s$')


@dataclass(frozen=True)
class Parameters:
    """What a picture was made from: prompts, and named settings as the text holds them."""

    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def format_parameters(parameters: Parameters) -> str:
    """The ``parameters`` text. Both the negative line and the settings are always written."""
    settings = ", ".join(f"{name}: {_quote(value)}" for name, value in parameters.settings.items())
    return f"{parameters.prompt}\n{NEGATIVE} {parameters.negative}\n{settings}"


def parse_parameters(text: str) -> Parameters:
    """Read a ``parameters`` text, ours or another tool's. What cannot be understood becomes prompt."""
    *lines, last = text.split("\n")
    found = SETTING.findall(last)
    if not (last.startswith("Steps: ") or len(found) >= 3):
        lines, found = [*lines, last], []
    start = next((n for n, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    return Parameters("\n".join(lines[:start]), negative, {name: _unquote(value) for name, value in found})


def embedded_texts(path: Path) -> dict[str, str]:
    """The texts that a picture carries, by their keys. Raises FileError if it is no picture."""
    from PIL import Image

    from sdlora.data.pictures import FORMATS

    try:
        if not path.is_file():  # A pipe would be waited for.
            raise OSError
        with Image.open(path, formats=FORMATS) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except Exception:  # A hostile file makes Pillow raise almost anything.
        raise FileError(f"{path.name}: is not a picture that can be read") from None


def read_parameters(path: Path) -> Parameters | None:
    """The parameters that a picture carries, or None. Raises FileError if it is no picture."""
    text = embedded_texts(path).get("parameters")
    return None if text is None else parse_parameters(text)


def check_output(path: Path) -> Path:
    """``path`` with ``~`` expanded.

    Raises ConfigError unless it names a PNG file, FileError unless it can be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: pictures are saved as PNG, which keeps their settings; name it {path.stem}.png")
    path = as_path(path)
    folder = next(parent for parent in path.absolute().parents if existing_path(parent))
    if not os.access(folder, os.W_OK):
        raise FileError(f"{folder}: cannot be written; choose another place for {path.name}")
    return path


def save_images(images: "Sequence[Image.Image]", path: Path) -> list[Path]:
    """Save ``images`` as ``path``, ``path-2``, ..., each whole or not at all; no file is ever overwritten.

    Their ``info["parameters"]`` goes along. Returns the paths. Raises ConfigError if ``path`` is no PNG's name,
    FileError if it cannot be written.
    """
    path, saved = check_output(path), []
    for image in images:
        target = unused_path(path)
        write_atomic(target, lambda temporary, image=image: write_image(image, temporary))  # type: ignore[misc]
        saved.append(target)
    return saved


def write_image(image: "Image.Image", path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, over what is there, with its ``info["parameters"]``."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    text = image.info.get("parameters")
    if text:
        chunks.add_text("parameters", text.encode("utf-8", "replace").decode())
    image.save(path, format="PNG", pnginfo=chunks)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if NEEDS_QUOTES.search(value) else value


def _unquote(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()
