"""Generated images on disk: PNG files with AUTOMATIC1111's ``parameters`` text, and its reading.

The text is the prompt, a line ``Negative prompt: ...`` and a line of settings, ``Steps: 25, Sampler: ..., Seed: 1``
(modules/infotext_utils.py of stable-diffusion-webui). The format has no escape for a prompt whose own line begins
with ``Negative prompt:``: what follows such a line reads back as part of the negative prompt.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.data.images import open_untrusted
from sdlora.errors import ConfigError, FileError
from sdlora.filesystem.paths import as_path, existing_path
from sdlora.filesystem.writing import write_new


def embedded_texts(path: Path) -> dict[str, str]:
    """Return the texts in an image file, by their keys. Raises FileError if it is no image."""
    try:
        if not path.is_file():  # A pipe would be waited for.
            raise OSError
        with open_untrusted(path) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except Exception:  # A hostile file makes Pillow raise almost anything.
        raise FileError(f"{path.name}: is not a picture that can be read") from None


def check_output(path: Path) -> Path:
    """Return ``path`` with ``~`` expanded.

    Raises ConfigError unless it names a PNG file, FileError unless it can be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: pictures are saved as PNG, which keeps their settings; name it {path.stem}.png")
    path = as_path(path)
    folder = next(parent for parent in path.absolute().parents if existing_path(parent))
    if not os.access(folder, os.W_OK):
        raise FileError(f"{folder}: cannot be written; choose another folder for {path.name}")
    return path


def save_images(images: Sequence[Image.Image], path: Path) -> list[Path]:
    """Save ``images`` as ``path``, ``path-2``, ..., each atomically; no file is ever overwritten.

    Their ``info["parameters"]`` goes along. Returns the paths. Raises ConfigError if ``path`` is no PNG's name,
    FileError if it cannot be written.
    """
    path, saved = check_output(path), []
    for image in images:
        saved.append(write_new(path, partial(write_image, image)))
    return saved


def write_image(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, over what is there, with its ``info["parameters"]``."""
    chunks = PngInfo()
    text = image.info.get("parameters")
    if text:
        chunks.add_text("parameters", text.encode("utf-8", "replace").decode())
    image.save(path, format="PNG", pnginfo=chunks)
