"""The oldest versions that are promised to do, as constraints for pip, in bash:

    pip install -c <(python tools/lowest.py) -e ".[test]" && pytest --deselect tests/test_supply.py

``python tools/lowest.py torch=2.13.0`` puts another version in the place of one that cannot be had.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def bounds() -> dict[str, str]:
    """The lower bound of each dependency, of the extras too, by its name."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    return dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,<[\d.]+)?", each).groups() for each in named)


if __name__ == "__main__":
    instead = dict(argument.split("=") for argument in sys.argv[1:])
    for name, version in (bounds() | instead).items():
        print(f"{name}=={version}")
