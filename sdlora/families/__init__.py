"""Families of base models. Adding one is one new file, or package, and one row here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

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
        return _import_family(*self.ROWS[name])

    def __contains__(self, name: object) -> bool:
        return name in self.ROWS

    def __iter__(self) -> Iterator[str]:
        return iter(self.ROWS)

    def __len__(self) -> int:
        return len(self.ROWS)


@lru_cache
def _import_family(module: str, cls: str) -> "type[Family]":
    family: type[Family] = getattr(import_module(module), cls)
    return family


FAMILIES = _Families()


def family_title(name: str) -> str:
    """Return a family's name for people; empty for an unknown one."""
    return FAMILIES[name].title if name in FAMILIES else ""


class _Components(NamedTuple):
    """Components of all families by name: all, those that adapters go into, those that predict."""

    all: "dict[str, Component]"
    adaptable: "dict[str, Component]"
    denoisers: "dict[str, Component]"


def family_components() -> "dict[str, Component]":
    """Return the components of all families by name, as the first has each, with the classes of all."""
    return _components(tuple(FAMILIES.values())).all


def adaptable_components() -> "dict[str, Component]":
    """Return those of ``family_components`` that adapters go into."""
    return _components(tuple(FAMILIES.values())).adaptable


def denoisers() -> "dict[str, Component]":
    """Return those of ``family_components`` that predict."""
    return _components(tuple(FAMILIES.values())).denoisers


@lru_cache(maxsize=4)
def _components(families: "tuple[type[Family], ...]") -> _Components:
    found: dict[str, Component] = {}
    for family in families:
        for name, component in family.components.items():
            first = found.get(name, component)
            found[name] = replace(first, classes=tuple(dict.fromkeys((*first.classes, *component.classes))))
    return _Components(
        found,
        {name: component for name, component in found.items() if component.target_groups},
        {family.denoiser: found[family.denoiser] for family in families},
    )
