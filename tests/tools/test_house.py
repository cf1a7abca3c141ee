"""The figures of ``tools/house.py``, on a small checkout whose figures are known, and those that this one must keep."""

from pathlib import Path

from tools import house

HOUSE = {
    "sdlora/families/sd1.py": 'unet = "sd1" == "x"\n',
    "sdlora/one.py": '"""Of one thing."""\nclass Plan:\n    size: int\n    """Which it has."""\n',
    "sdlora/two.py": 'net = 1\nclass Plan:\n    """Plan."""\n    if a in ("lora", "x") or b == "sd1":\n        0\n',
    "sdlora/three.py": 'UNET = "unet.down"\noutputs = [gr.skip()] * 17\nmatch kind:\n    case "ia3":\n        0\n',
    "sdlora/long.py": "def name():\n    \"\"\"Return 'loha'.\"\"\"\n    return 'loha'\n" + "\n" * 50,
    "sdlora/__init__.py": "",
    "tests/test_a.py": "from tests.test_b import x\nfrom tests import test_c\nfrom tests.support.images import y\n",
}  # fmt: skip


def test_each_figure_counts_what_it_says(tmp_path: Path) -> None:
    for path, source in HOUSE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert [*house.measure(tmp_path).values()] == [
        1,  # unet: three.py; families/ may name it.
        2,  # Methods compared: two.py and three.py.
        3,  # Methods as literals: long.py too.
        1,  # Families compared: two.py.
        4,  # Short: all but long.py and __init__.py.
        1,  # Class names: Plan.
        2,  # Docstrings: "Of one thing." and "Which it has."
        1,  # gr.skip
        2,  # Imports from test modules.
        6, 1 + 4 + 5 + 5 + 53, 3,
    ]  # fmt: skip


def test_a_column_for_each_checkout(tmp_path: Path) -> None:
    rows = house.table([tmp_path, tmp_path]).splitlines()
    assert rows[0] == f"|  | {tmp_path.name} | {tmp_path.name} |"
    assert rows[-1] == "| lines of tests/ | 0 | 0 |"


def test_this_checkout_has_helpers_and_class_names_in_one_place_each() -> None:
    root = Path(house.__file__).parent.parent
    tests = house.read_modules(root, "tests")
    assert {path: found for path, (_, tree) in tests.items() if (found := [*house.imported_test_modules(tree)])} == {}
    assert house.shared_class_names(house.read_modules(root, "sdlora")) == []
