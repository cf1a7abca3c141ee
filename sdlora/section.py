"""Base class of all config sections, and iteration over the settings that they declare.

A setting is declared once: its name, type, range and default in the field, its help in the string below it. Presets,
flags, the web form, saved configs and the reference page are derived from that.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean, one_line

LONGEST_TEXT = 10_000
"""Characters of any text in a setting: a caption may have as many bytes."""
LONGEST_QUOTE = 200
"""Characters of a value in a message."""


class Section(BaseModel):
    """A frozen group of settings. Unknown names, non-finite numbers and endless texts are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True,
        str_max_length=LONGEST_TEXT,
    )  # fmt: skip

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Return the section with ``values``. Raises ConfigError naming setting, value and reason."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, cls.model_fields)) from None

    @classmethod
    def from_section(cls, other: "Section", **changes: Any) -> Self:
        """Return the settings that ``other`` declares too, with ``changes``. Raises ConfigError as ``checked`` does.

        What nobody has set in ``other`` stays unset, unless its default there is another one.
        """
        names = cls.model_fields.keys() & type(other).model_fields
        shared = {name: getattr(other, name) for name in names}
        unset = {name for name in names - other.model_fields_set if shared[name] == cls.model_fields[name].default}
        return cls.checked(**{name: value for name, value in shared.items() if name not in unset} | changes)

    def to_json(self) -> dict[str, Any]:
        """Return the settings that were set, as JSON has them: read again, the others are unset as they were."""
        return self.model_dump(mode="json", exclude_unset=True)


def first_problem(error: ValidationError, names: Iterable[str] = ()) -> str:
    """Return the first problem as ``steps = 0: input should be ...``; an unknown setting with the nearest of ``names``.

    At most 500 characters.
    """
    problem = error.errors()[0]
    name = one_line(".".join(map(str, problem["loc"])), 80)
    if problem["type"] == "extra_forbidden":
        return "; ".join(filter(None, (f"there is no setting {name}", did_you_mean(name, names))))
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{name} = {quote_value(problem['input'])}: {reason[0].lower()}{reason[1:]}"[:500]


def quote_value(value: Any) -> str:
    """Return ``value`` as messages quote it, shortened: an untrusted one may be of any length and depth."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Nested too deeply; or a number of thousands of digits.
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


class Setting(NamedTuple):
    """A declared setting: its dotted name (``adapter.rank``) and its pydantic field."""

    name: str
    field: FieldInfo

    @property
    def help(self) -> str:
        """The text below the field, on one line."""
        return " ".join((self.field.description or "").split())

    @property
    def default(self) -> Any:
        """The field's default value."""
        return self.field.get_default(call_default_factory=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that the declaration admits, infinite where it sets no bound."""
        least = next((limit.ge for limit in self.field.metadata if hasattr(limit, "ge")), -math.inf)
        most = next((limit.le for limit in self.field.metadata if hasattr(limit, "le")), math.inf)
        return least, most


def lists_sections(annotation: Any) -> bool:
    """Return whether a field holds several sections of one kind: ``tuple[Concept, ...]``."""
    return get_origin(annotation) is tuple and any(map(sections_in, get_args(annotation)))


def sections_in(annotation: Any) -> list[type[Section]]:
    """Return the section classes that a field's annotation admits: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is tuple:
        return []
    return [section for member in get_args(annotation) for section in sections_in(member)]


def settings(section: type[Section], prefix: str = "") -> Iterator[Setting]:
    """Yield every setting below ``section``, depth first, in the order of declaration, each name once.

    If a field admits several sections, their discriminator is one setting with the values of all of them. The settings
    of a list of sections have no single name, and are left out.
    """
    for name, field in section.model_fields.items():
        if lists_sections(field.annotation):
            continue
        members = sections_in(field.annotation)
        found: dict[str, Setting] = {}
        for setting in (s for member in members for s in settings(member, f"{prefix}{name}.")):
            first = found.setdefault(setting.name, setting)
            if first is not setting:
                found[setting.name] = Setting(setting.name, _merge(first.field, setting.field))
        yield from found.values() if members else [Setting(f"{prefix}{name}", field)]


def _merge(one: FieldInfo, other: FieldInfo) -> FieldInfo:
    """Merge two sections' fields of one name: literals into one that admits the values of both, else the first."""
    if get_origin(one.annotation) is not Literal or get_origin(other.annotation) is not Literal:
        return one
    both: Any = Literal[(*get_args(one.annotation), *get_args(other.annotation))]
    merged = FieldInfo.from_annotated_attribute(both, one.default)
    merged.description = one.description
    return merged
