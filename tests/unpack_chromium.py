"""Unpack the Chromium of the npm package `@sparticuz/chromium` for `make tools`: `python unpack_chromium.py PACKAGE TARGET`.

PACKAGE is the folder that `npm install` made, TARGET gets the browser, its libraries and fonts, and `chromium`, a command that
starts it. Runs in an environment of its own (requirements-browser.lock) and imports nothing of the project.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import brotli

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <dir>/usr/share/fonts</dir>
</fontconfig>
"""
COMMAND = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib" FONTCONFIG_PATH="$here" exec "$here/chrome" "$@"
"""


def unpack(package: Path, target: Path) -> None:
    """Write the files; the command comes last, so that where it is, everything is."""
    target.mkdir(parents=True, exist_ok=True)
    for archive in ("al2023", "swiftshader", "fonts"):
        packed = brotli.decompress((package / f"bin/{archive}.tar.br").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(target, filter="data")
    (target / "fonts.conf").write_text(FONTS)
    for name, content in (
        ("chrome", brotli.decompress((package / "bin/chromium.br").read_bytes())),
        ("chromium", COMMAND.encode()),
    ):
        (target / name).write_bytes(content)
        (target / name).chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
