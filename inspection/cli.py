"""`baguni inspect`."""

from __future__ import annotations

from pathlib import Path

import click

PORT = 7480


@click.command()
@click.option("--port", default=PORT, show_default=True, help="Where the page listens.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Whoever can reach it reads every history.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    help="A prepared data folder: shows what users really ordered next.",
)
def inspect(port: int, host: str, data: Path | None) -> None:
    """A page to look inside recommendations: users, items, releases, both spaces. It only reads.

    \b
    baguni inspect
    baguni inspect --port 8080 --data .baguni/complete-journey
    """
    from inspection.page import serve

    serve(host, port, data)
