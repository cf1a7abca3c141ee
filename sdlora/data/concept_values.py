"""Concepts as files and flags give them: nested values, before they are validated."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdlora.data.concepts import MOST_CONCEPTS, OWN, OWN_PRIOR
from sdlora.data.settings import Concept
from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean
from sdlora.section import quote_value

CONCEPTS = "concepts"
"""Name of the list in a file, and of the flag's value."""
PATHS = ("folder", "class_folder", "validation_folder")
"""Settings of a concept that are paths."""


def with_folder_of_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's values with the first concept's folder as ``data.folder``, if they list concepts.

    Raises ValueError for a list that is empty or too long, and for words of one concept in ``data`` or ``prior``.
    """
    concepts = values.get(CONCEPTS, ())
    if concepts == ():
        return dict(values)
    if not isinstance(concepts, list | tuple):
        raise ValueError(f"concepts = {quote_value(concepts)} is no list; describe each in a table [[concepts]]")
    if not concepts:
        raise ValueError("concepts is empty; describe each in a table [[concepts]], or remove the line")
    if len(concepts) > MOST_CONCEPTS:
        raise ValueError(f"{len(concepts)} concepts are more than the {MOST_CONCEPTS} that fit into one run; use fewer")
    first = concepts[0]
    folder = first.get("folder") if isinstance(first, Mapping) else getattr(first, "folder", None)
    data = values.get("data", {})
    if not isinstance(data, Mapping):
        return dict(values)
    for section, names in (("data", OWN), ("prior", OWN_PRIOR)):
        _refuse_words_of_one(section, values.get(section, {}), names, folder)
    return {**values, "data": {**data, "folder": folder or "."}}


def _refuse_words_of_one(section: str, values: Any, names: Iterable[str], folder: object) -> None:
    found = values if isinstance(values, Mapping) else {}
    for name in (name for name in names if found.get(name)):
        if (section, name) != ("data", "folder") or str(found[name]) != str(folder):
            raise ValueError(f"{section}.{name} is for a run of one concept; move it into a table of [[concepts]]")


def replace_concepts(values: Mapping[str, Any], concepts: Any) -> dict[str, Any]:
    """Return a file's values with other ``concepts``: what the file says of its own goes with them."""
    result = {**values, CONCEPTS: concepts}
    for section, names in (("data", OWN), ("prior", OWN_PRIOR)):
        if isinstance(own := values.get(section), Mapping):
            result[section] = {name: value for name, value in own.items() if name not in names}
    result.setdefault("data", {})
    return result


def parse_concept(words: Sequence[str]) -> dict[str, str]:
    """Read a concept from a flag: ``folder=my-cat trigger=sks class_name=cat``. Raises ConfigError."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in Concept.model_fields or not equals:
            hint = did_you_mean(name, Concept.model_fields) if equals else "write NAME=VALUE, such as folder=my-cat"
            raise ConfigError("; ".join(filter(None, (f"--concept: {quote_value(word)} is no setting of one", hint))))
        values[name] = value
    return values
