"""Fill the tables in ``docs/benchmarks.md`` from ``results/*.json``: ``python -m benchmarks.page``."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import data, generate, memory, scale_out, start, time_to_quality, whole_run
from benchmarks.report import between as spread

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- {}: filled by python -m benchmarks.page -->\n", "<!-- end -->\n"
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


def source(result: dict[str, Any], more: str = "") -> str:
    """Machine, versions and command of a result."""
    machine = result["machine"]
    parts = [f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"]
    parts += [machine["gpu"]] if "gpu" in machine else []
    parts += [
        f"threads {machine['threads']}, load {machine['load']}",
        *(f"{name} {number}" for name, number in result["versions"].items()),
    ]
    return f"- `{result['command']}`: {'; '.join(parts)}{more}.\n"


def train_step(found: Sequence[dict[str, Any]]) -> str:
    sources = (source(result, f"; {result['config']['steps']} steps of each") for result in found)
    return HEAD + "".join(map(row, found)) + "\n" + "".join(sources)


def table_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, and a blank line."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) + "\n"


def of_memory(found: Sequence[dict[str, Any]]) -> str:
    head = [
        "model, side, precision",
        "kept, PEFT",
        "kept, ours",
        "ours / PEFT",
        "peak, PEFT",
        "peak, ours",
        "gradients",
    ]
    rows = []
    for result in found:
        for one in result["rows"]:
            kept = (f"{one[side]['kept_bytes'] / memory.MIB:.4g} MiB" for side in memory.SIDES)
            peaks = [
                f"{one[side]['peak_bytes'] / memory.MIB:.4g} MiB" if "peak_bytes" in one[side] else ""
                for side in memory.SIDES
            ]
            ratio, apart = f"**{one['kept_ours_over_peft']:.3g}**", one.get("gradient_difference", "")
            rows.append([f"`{one['model']}`, {memory.label(one)}", *kept, ratio, *peaks, apart])
    return table_of(head, rows) + "".join(_kinds(result) for result in found) + "".join(map(source, found))


def _kinds(result: dict[str, Any]) -> str:
    """Bytes by kind of layer; the last row is without checkpointing."""
    one = [one for one in result["rows"] if not one["checkpointing"]][-1]
    names = dict.fromkeys([*one["peft"]["kinds"], *one["ours"]["kinds"]])
    rows = [
        [name, *(f"{one[side]['kinds'].get(name, 0) / memory.MIB:.4g}" for side in memory.SIDES)]
        for name in names
        if any(one[side]["kinds"].get(name) for side in memory.SIDES)
    ]
    return table_of([f"`{one['model']}`, {memory.label(one)}: kept, in MiB", "PEFT", "ours"], rows)


def of_generate(found: Sequence[dict[str, Any]]) -> str:
    text = ""
    for result in found:
        config = result["config"]
        batch, _, *latents = config["latents"]
        what = f"`{config['model']}`, {batch} x {latents[0]} x {latents[1]} latents, {config['precision']}"
        head = [what, "a UNet call", "over base", "by processor time", "by operations", "to reach"]
        rows = [
            [
                way, f"{one['seconds']['median']:.3g} s", f"**{spread(one['over_base'])}**",
                spread(one["processor_over_base"]), one["floor_over_base"], generate.TO_REACH.get(way, ""),
            ]
            for way, one in result["ways"].items()
        ]  # fmt: skip
        text += table_of(head, rows)
        text += f"A change of all scales: {spread(result['set_scales_ms'])} ms, and {spread(result['stack_ms'])} ms "
        text += f"in the first call after it; folding in: {spread(result['fuse_ms'])} ms.\n"
        if "grid" in result:
            grid = result["grid"]
            alone, many = (f"{grid[f'{how}_seconds_a_picture']['median']:.3g}" for how in ("alone", "batch"))
            text += f"A compare grid of {grid['cells']} pictures of {grid['steps']} steps: {alone} s a picture one by "
            text += f"one, {many} s in one batch: {spread(grid['alone_over_batch'])} times as fast.\n"
        text += "\n"
    return text + "".join(map(source, found))


def of_lines(table: Callable[[dict[str, Any]], Sequence[str]]) -> Callable[[Sequence[dict[str, Any]]], str]:
    """The measurement's own table for the terminal, as it is."""

    def text(found: Sequence[dict[str, Any]]) -> str:
        return "".join("```\n" + "\n".join(table(one)) + "\n```\n\n" for one in found) + "".join(map(source, found))

    return text


TABLES: Mapping[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "train_step": train_step,
    "whole_run": of_lines(whole_run.table),
    "time_to_quality": of_lines(time_to_quality.table),
    "memory": of_memory,
    "generate": of_generate,
    "data": of_lines(data.table),
    "scale_out": of_lines(scale_out.table),
    "start": of_lines(start.table),
}
"""Text between the marks of each benchmark on the page."""


def filled(page: str) -> str:
    """``page`` with what stands between each pair of marks made anew."""
    for name, table in TABLES.items():
        begin = BEGIN.format(name)
        before, mark, rest = page.partition(begin)
        if mark:
            _, _, after = rest.partition(END)
            page = f"{before}{begin}\n{table(results(name))}\n{END}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
