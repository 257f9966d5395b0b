"""`python -m inspection` is `baguni inspect`."""

from __future__ import annotations

import sys

from baguni.domain.errors import BaguniError
from inspection.cli import inspect

if __name__ == "__main__":
    try:
        inspect()
    except BaguniError as error:
        sys.exit(f"Error: {error}")
