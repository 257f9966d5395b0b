"""`baguni token`: a bearer token for a caller of the gateway."""

from __future__ import annotations

import secrets

import click

from server.edge.callers import Permission, token_hash


@click.command()
@click.argument("name")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice([permission.value for permission in Permission]),
    default=["online"],
    show_default=True,
    help="What it may do; may be given several times.",
)
def token(name: str, permissions: tuple[str, ...]) -> None:
    """Make a bearer token for the caller NAME.

    The token goes to standard output, once: hand it to the caller. What the gateway's file of callers needs of it goes to
    standard error.

    \b
    baguni token shop-backend > shop-backend.token 2>> callers.toml
    """
    made = secrets.token_urlsafe(32)
    click.echo(made)
    listed = ", ".join(f'"{permission}"' for permission in permissions)
    click.echo(f'["{name}"]\ntoken_sha256 = "{token_hash(made)}"\npermissions = [{listed}]', err=True)
