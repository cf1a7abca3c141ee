"""Methods by name, and the type of the config's ``adapter`` section.

A new method is one file, with its section and its parametrization, and its class in ``METHODS``.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator

from sdlora.adapters.ia3 import Ia3
from sdlora.adapters.lora import Dora, Lora
from sdlora.adapters.lycoris import Loha, Lokr
from sdlora.adapters.method import Method

METHODS: dict[str, type[Method]] = {
    method.model_fields["method"].default: method for method in (Lora, Dora, Loha, Lokr, Ia3)
}
DEFAULT_METHOD = next(iter(METHODS))
"""Method of a section that names none."""


def _with_method(value: Any) -> Any:
    """Name the default method where a table names none: a union, unlike a field, has no default for its tag."""
    return {"method": DEFAULT_METHOD} | value if isinstance(value, dict) else value


if TYPE_CHECKING:
    Adapter = Method
else:
    Adapter = Annotated[reduce(or_, METHODS.values()), Discriminator("method"), BeforeValidator(_with_method)]
