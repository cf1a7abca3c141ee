"""The base class of every config section, and a walk over the settings that they declare.

A setting is declared once: its name, type, range and default in the field, its help in the string
below it. Presets, flags, the web form, saved configs and the reference page all read it from here.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A frozen group of settings. Unknown names and non-finite numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Setting(NamedTuple):
    """One declared setting: its dotted name (``adapter.rank``), and pydantic's account of it."""

    name: str
    field: FieldInfo

    @property
    def help(self) -> str:
        return " ".join((self.field.description or "").split())

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The section classes that a field's annotation admits: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for member in get_args(annotation) for section in sections_in(member)]


def settings(section: type[Section], prefix: str = "") -> Iterator[Setting]:
    """Every setting below ``section``, depth first, in the order of declaration, each name once.

    Where a field admits several sections, what tells them apart is one setting with all of their words.
    """
    for name, field in section.model_fields.items():
        members = sections_in(field.annotation)
        found: dict[str, Setting] = {}
        for setting in (s for member in members for s in settings(member, f"{prefix}{name}.")):
            known = found.setdefault(setting.name, setting)
            if known is not setting:
                found[setting.name] = Setting(setting.name, _joined(known.field, setting.field))
        yield from found.values() if members else [Setting(f"{prefix}{name}", field)]


def _joined(one: FieldInfo, other: FieldInfo) -> FieldInfo:
    """One field for two sections' of a name: of literals one that admits the words of both, else the first."""
    if get_origin(one.annotation) is not Literal or get_origin(other.annotation) is not Literal:
        return one
    both: Any = Literal[(*get_args(one.annotation), *get_args(other.annotation))]
    joined = FieldInfo.from_annotated_attribute(both, one.default)
    joined.description = one.description
    return joined
