"""Checks that a process keeps neither memory nor open files."""

import gc

import psutil

DRIFT = 0.02
"""Growth of memory that passes as noise, as a share."""
Resources = tuple[int, int]


def resources_in_use() -> Resources:
    """Bytes and open files of this process."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds()


def assert_flat(before: Resources, after: Resources) -> None:
    print(f"{before[0] / 2**20:.1f} MiB, then {after[0] / 2**20:.1f}; open files {before[1]}, then {after[1]}")
    assert after[1] == before[1]
    assert after[0] <= before[0] * (1 + DRIFT)
