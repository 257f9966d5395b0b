"""What pyproject.toml asks for, a requirement a line: `python dependencies.py [EXTRA …]`.

For an image that installs what a process needs and none of our code: `pip install --requirement`, the lock as constraints.
"""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def dependencies(pyproject: Path, extras: Iterable[str] = ()) -> list[str]:
    """What every process needs, and what the named groups add. Raises KeyError for a group that is none."""
    project = tomllib.loads(pyproject.read_text())["project"]
    groups = project["optional-dependencies"]
    return sorted({*project["dependencies"], *(wanted for extra in extras for wanted in groups[extra])})


if __name__ == "__main__":
    print("\n".join(dependencies(Path("pyproject.toml"), sys.argv[1:])))
