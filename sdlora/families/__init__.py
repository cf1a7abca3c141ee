"""Families of base models. Adding one is one new file, or package, and one row here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.families.base import Component, Family


class _Families(Mapping[str, "type[Family]"]):
    """Classes by family name, imported on first use; importing one imports no torch."""

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


def family_title(name: str) -> str:
    """Return a family's name for people; empty for an unknown one."""
    return FAMILIES[name].title if name in FAMILIES else ""


def family_components() -> "dict[str, Component]":
    """Return the components of all families by name, each with the classes that it has in any family."""
    found: dict[str, Component] = {}
    for family in FAMILIES.values():
        for name, component in family.components.items():
            classes = dict.fromkeys((*(found[name].classes if name in found else ()), *component.classes))
            found[name] = replace(component, classes=tuple(classes))
    return found
