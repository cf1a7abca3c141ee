"""Location of a model that a name stands for: a path on this machine, or a hub id."""

from pathlib import Path

from sdlora.errors import ModelError
from sdlora.families.base_models import HUB_ID
from sdlora.filesystem.paths import PICKLES, existing_path
from sdlora.formatting import one_line


def locate_model(name: str, refusal: str, suffixes: tuple[str, ...] = ()) -> Path | None:
    """Return the folder, or the file of one of these ``suffixes``, that ``name`` stands for; None for a hub id.

    Raises ModelError with ``refusal`` for anything else.
    """
    found, suffix = existing_path(name), Path(name).suffix.lower()
    if suffix in PICKLES:
        raise ModelError(f"{name}: this kind of file can run code when it is opened; give a folder with safetensors")
    if found is not None and (found.is_dir() or (suffix in suffixes and found.is_file())):
        return found
    if found is not None or suffix in suffixes or not HUB_ID.fullmatch(name):
        raise ModelError(f"{one_line(name)!r}: {refusal}")
    return None
