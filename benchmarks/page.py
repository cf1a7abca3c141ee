"""Fill the table in ``docs/benchmarks.md`` from ``results/*.json``: ``python -m benchmarks.page``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- train_step: filled by python -m benchmarks.page -->\n", "<!-- end -->\n"
SIDES = ("reference", "ours")
HEAD = """| model, side, batch | device, precision | reference | ours | reference / ours | processor time | operations |
| --- | --- | --- | --- | --- | --- | --- |
"""


def results(benchmark: str) -> list[dict[str, Any]]:
    """The kept results of one benchmark, by file name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return [result for result in found if result.get("benchmark") == benchmark]


def row(result: dict[str, Any]) -> str:
    """One result as a line of the table."""
    config, machine = result["config"], result["machine"]
    batch = config["batch_size"]
    cells = [
        f"`{result['model']}`, {config['resolution']} px, {batch} + {batch}",
        f"{machine.get('gpu', 'CPU') if config['device'] != 'cpu' else 'CPU'}, {config['precision']}",
        *(f"{result[f'{name}_seconds']:.3g} s ({between(result[f'{name}_quartiles'])})" for name in SIDES),
        f"**{result['reference_over_ours']:.2f}** ({between(result['ratio_quartiles'])})",
        f"{result['processor_ratio']:.2f}",
        f"{result['flop_bound']:.2f} ({result['reference_gflop']:.4g} / {result['ours_gflop']:.4g} GFLOP)",
    ]
    return f"| {' | '.join(cells)} |\n"


def between(quartiles: Iterable[float]) -> str:
    """``0.1 to 0.2``."""
    return " to ".join(f"{value:.3g}" for value in quartiles)


def source(result: dict[str, Any]) -> str:
    """Where and how a result was measured."""
    machine = result["machine"]
    parts = [f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"]
    parts += [machine["gpu"]] if "gpu" in machine else []
    parts += [
        f"threads {machine['threads']}, load {machine['load']}",
        *(f"{name} {number}" for name, number in result["versions"].items()),
    ]
    return f"- `{result['command']}`: {'; '.join(parts)}; {result['config']['steps']} steps of each.\n"


def filled(page: str) -> str:
    """``page`` with what stands between the marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = results("train_step")
    tables = HEAD + "".join(map(row, found)) + "\n" + "".join(map(source, found))
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
