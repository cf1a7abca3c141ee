"""This package's warnings as messages for the user."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def capture_warnings(on_message: Callable[[str], object]) -> Iterator[None]:
    """Call ``on_message`` with each of this package's warnings, once; those of libraries stay as they are."""
    reported: set[str] = set()

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if PACKAGE not in Path(filename).parents:
                usual(message, category, filename, *rest, **more)
            elif str(message) not in reported:
                reported.add(str(message))
                on_message(str(message))

        warnings.filterwarnings("always", category=UserWarning, module=__package__)
        warnings.showwarning = show
        yield
