"""The families of base models served. Adding one is one new file and one row here."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.families.base import Family


class _Families(Mapping[str, "type[Family]"]):
    """Rows of name -> class, imported when first asked for: they need torch and diffusers."""

    ROWS = {
        "sd1": ("sdlora.families.stable_diffusion", "SD1"),
        "sd2": ("sdlora.families.stable_diffusion", "SD2"),
        "sdxl": ("sdlora.families.sdxl", "SDXL"),
    }

    def __getitem__(self, name: str) -> "type[Family]":
        module, cls = self.ROWS[name]
        return getattr(import_module(module), cls)

    def __contains__(self, name: object) -> bool:
        return name in self.ROWS

    def __iter__(self) -> Iterator[str]:
        return iter(self.ROWS)

    def __len__(self) -> int:
        return len(self.ROWS)


FAMILIES = _Families()
