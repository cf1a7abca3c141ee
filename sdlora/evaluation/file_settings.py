"""Settings of an evaluation of adapter files, which have no run that would tell them. No torch."""

from pathlib import Path

from sdlora.data.settings import Kind
from sdlora.section import Section


class FileSettings(Section):
    """Facts about adapter files that an evaluation needs, and that a run tells by itself."""

    images: Path | None = None
    """Folder with the training pictures of adapter files, with their captions. Without it only prompts kept, drift and
    diversity are measured, and nothing is proposed."""

    trigger: str = ""
    """Trigger of adapter files. That of the first file's metadata if left out."""

    class_name: str = ""
    """Class of a subject of adapter files, such as `cat`."""

    kind: Kind | None = None
    """Content of the adapter files: `style` or `subject`. A subject if `class_name` is given, else a style."""

    base: str = ""
    """Base model of adapter files. That of the first file's metadata if left out."""
