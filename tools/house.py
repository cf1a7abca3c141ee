"""Count what makes this code hard to extend, as a Markdown table: ``python tools/house.py [CHECKOUT ...]``.

Every figure is a number of files, names or lines, by patterns alone, so that checkouts of different layouts compare:
``python tools/house.py ../before .`` has a column for each.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

FAMILY_NAMES = {"sd1", "sd2", "sdxl"}
METHOD_NAMES = {"lora", "dora", "loha", "lokr", "ia3"}
DEPENDENT_WORDS = {"Of", "That", "Which", "Where", "What", "Those", "At", "As", "How", "Whether", "By", "So"}
"""First words of a docstring that needs its neighbourhood to be understood."""
UNET = re.compile(r"(?<![a-z])unet(?![a-z])", re.IGNORECASE)
GRADIO_SKIPS = "gr.skip()] *"
SHORT = 50
"""Lines below which a module is short."""

Modules = dict[str, tuple[str, ast.Module]]
"""Source and syntax tree of each module, by its path in the checkout."""


def read_modules(root: Path, *folders: str) -> Modules:
    """Parse the Python files below ``folders`` of ``root``."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    sources = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {path: (source, ast.parse(source)) for path, source in sources.items()}


def outside(modules: Modules, *rooms: str) -> Modules:
    """Leave out the packages ``rooms``."""
    return {path: module for path, module in modules.items() if not {*rooms} & {*path.split("/")[:-1]}}


def literals(tree: ast.AST) -> set[str]:
    """Collect the strings in an expression or a pattern."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def compares(tree: ast.Module, names: set[str]) -> bool:
    """Return whether one of ``names`` is compared as a literal: ``==``, ``!=``, ``in``, or a ``case``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(names & _operand(side) for side in (node.left, *node.comparators)):
            return True
        if isinstance(node, ast.match_case) and names & literals(node.pattern):
            return True
    return False


def _operand(node: ast.expr) -> set[str]:
    return literals(node) if isinstance(node, ast.Constant | ast.Tuple | ast.List | ast.Set) else set()


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module, its classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            statements = node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            statements = node.body[:1]
        else:
            continue
        for statement in statements:
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield text


def stands_alone(docstring: str) -> bool:
    """Return whether the first word is none of ``DEPENDENT_WORDS``."""
    first = re.match(r"\W*(\w+)", docstring)
    return first is None or first[1] not in DEPENDENT_WORDS


def imported_test_modules(tree: ast.Module) -> Iterator[str]:
    """Yield the test modules, conftest among them, that a module imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if re.search(r"(^|\.)(test_\w+|conftest)$", node.module):
                yield node.module
            yield from (alias.name for alias in node.names if node.module.startswith("tests") and
                        alias.name.startswith("test_"))  # fmt: skip


def shared_class_names(modules: Modules) -> list[str]:
    """Return the names of classes that more than one module defines at its top level, private ones left out."""
    homes = defaultdict(set)
    for path, (_, tree) in modules.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path)
    return sorted(name for name, paths in homes.items() if len(paths) > 1)


def lines(modules: Modules) -> int:
    return sum(source.count("\n") for source, _ in modules.values())


def measure(root: Path) -> dict[str, int]:
    """Return every figure of the checkout at ``root``, by its description."""
    package, tests = read_modules(root, "sdlora"), read_modules(root, "tests")
    trees = [tree for _, tree in package.values()]
    texts = [text for tree in trees for text in docstrings(tree)]
    short = [path for path, (source, _) in package.items()
             if source.count("\n") < SHORT and not path.endswith("__init__.py")]  # fmt: skip
    return {
        "files that name `unet`, outside families/ and formats/":
            sum(bool(UNET.search(source)) for source, _ in outside(package, "families", "formats").values()),
        "files that compare the name of an adapter method": sum(compares(tree, METHOD_NAMES) for tree in trees),
        "files with the name of an adapter method as a literal": sum(bool(METHOD_NAMES & literals(t)) for t in trees),
        "files that compare the name of a family, outside families/":
            sum(compares(tree, FAMILY_NAMES) for _, tree in outside(package, "families").values()),
        f"modules under {SHORT} lines": len(short),
        "class names that more than one module defines": len(shared_class_names(package)),
        "docstrings that do not stand alone": sum(not stands_alone(text) for text in texts),
        f"handlers with `{GRADIO_SKIPS}`": sum(source.count(GRADIO_SKIPS) for source, _ in package.values()),
        "imports from a test module": sum(len([*imported_test_modules(tree)]) for _, tree in tests.values()),
        "modules of sdlora/": len(package),
        "lines of sdlora/": lines(package),
        "lines of tests/": lines(tests),
    }  # fmt: skip


def table(roots: list[Path]) -> str:
    """Return the figures of all checkouts as a Markdown table."""
    columns = [measure(root) for root in roots]
    rows = [["", *(root.resolve().name for root in roots)], ["---", *("---:" for _ in roots)]]
    rows += [[name, *(f"{column[name]:,}" for column in columns)] for name in columns[0]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]] or [Path(__file__).parent.parent]))
