"""This package's own warnings as sentences for a person."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def capture_warnings(say: Callable[[str], object]) -> Iterator[None]:
    """``say`` each of this package's warnings, once; those of libraries stay as they are."""
    told: set[str] = set()

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if PACKAGE not in Path(filename).parents:
                usual(message, category, filename, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                say(str(message))

        warnings.filterwarnings("always", category=UserWarning, module=__package__)
        warnings.showwarning = show
        yield
