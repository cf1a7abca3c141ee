"""The base model, as a setting."""

from sdlora.section import Section


class Model(Section):
    """Which base model the adapter is trained on."""

    base: str = "pocket"
    """The base model: `pocket` (bundled), a diffusers folder, a single `.safetensors` file, or a hub id."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    variant: str | None = None
    """File variant of a folder or hub id, such as `fp16`."""
