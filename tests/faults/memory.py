"""How much memory processes use that is theirs alone."""

from __future__ import annotations

import psutil

MB = 1 << 20


def listening(port: int) -> psutil.Process:
    """Return the process that listens on a port."""
    found = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return psutil.Process(next(each.pid for each in found if each.laddr.port == port and each.pid is not None))


def memory_mb(process: psutil.Process) -> float:
    """Return the memory of a process and those that it started, in MB."""
    return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True))) / MB
