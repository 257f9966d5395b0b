"""Count the processors that this process may use. Imports nothing of ours: models in Triton have a copy of this file.

`os.cpu_count()` is the machine's. A container on a large machine that has two processors by its quota would start a thread for
each of the machine's, which then wait for each other.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def available_processors(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return the least of the machine's processors, those that the scheduler allows, and every quota of the process's control
    group and its parents (version 1 and 2), rounded up; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([allowed, *(math.ceil(quota) for quota in _quotas(cgroups, own))]), 1)


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", *lines]:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        root = cgroups / "cpu" if "cpu" in controllers.split(",") else cgroups
        if controllers and root == cgroups:
            continue
        folder = root / path.strip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(cgroups):
                yield from _quota(each)


def _quota(folder: Path) -> Iterator[float]:
    try:  # version 2: "200000 100000", or "max 100000"
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)
