"""Putting the page together and serving it."""

from __future__ import annotations

import socket
from pathlib import Path

import click
from nicegui import ui

from baguni.clients.gateway import ClientSettings
from baguni.domain.errors import InvalidInputError
from inspection.connections import Connections
from inspection.pages.item_page import add_item_page
from inspection.pages.map_page import add_map_page
from inspection.pages.releases_page import add_releases_page
from inspection.pages.user_page import add_user_page
from inspection.placed_orders import read_orders


def serve(host: str, port: int, data: Path | None) -> None:
    """Until it is interrupted. Raises InvalidInputError for a data folder or an address that cannot be used."""
    orders = read_orders(data) if data is not None else None
    _check_address(host, port)
    connections = Connections(ClientSettings(), orders)
    for add_page in (add_user_page, add_item_page, add_releases_page, add_map_page):
        add_page(connections)
    click.echo(f"The page is at http://{host}:{port} (Ctrl-C ends it).")
    ui.run(host=host, port=port, title="baguni inspect", reload=False, show=False, show_welcome_message=False)


def _check_address(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InvalidInputError(f"cannot listen on {host}:{port}: {error}; `--port` chooses another") from error
