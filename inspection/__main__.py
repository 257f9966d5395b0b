"""`python -m inspection` is `baguni inspect`."""

from __future__ import annotations

from inspection.cli import inspect

if __name__ == "__main__":
    inspect()
