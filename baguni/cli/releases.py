"""`baguni release`: list, show, activate, roll back, push, pull; and, from other processes, replay and nightly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from rich.table import Table

from baguni.cli.commands import CommandGroup
from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import BaguniError, InvalidInputError, NotFoundError
from baguni.domain.release import Release, ReleaseStore
from baguni.logs import indented
from baguni.releases.release_transfer import Follower, Progress, RemoteReleases, follow
from baguni.settings import Endpoints

FOLLOW_S = 5.0

url_option = click.option("--url", default=None, help="Where to: s3://BUCKET/PREFIX. Default: BAGUNI_RELEASES_URL.")


@click.group(cls=CommandGroup, registry="baguni.release_commands")  # replay and nightly
@click.option("--releases", type=click.Path(path_type=Path), default=None, help="The release store.")
@click.pass_context
def release(context: click.Context, releases: Path | None) -> None:
    """List, show, try, activate, roll back, prune, push and pull releases.

    \b
    baguni release list
    baguni release replay --log captured/ --candidate r20261124_1f3a9c02
    baguni release activate r20261124_1f3a9c02
    baguni release rollback
    baguni release prune --keep 2
    """
    context.obj = ReleaseStore(releases or Endpoints().releases)


@release.command("list")
@click.pass_obj
def list_releases(store: ReleaseStore) -> None:
    """List all releases, oldest first."""
    active = store.active_id()
    table = Table("", "release", "data", "items", "made at", "HR@10 of the distilled retrieval head")
    for release_id in store.ids():
        found = store.get(release_id, verify=False)
        models = found.metrics.get("models", {})
        quality = models.get("retrieval, distilled", {}).get("all", {}).get("HR@10")
        table.add_row(
            "→" if release_id == active else "",
            release_id,
            str(found.manifest.get("dataset", "")),
            f"{found.signature.num_items:,}",
            str(found.manifest["created_at"]),
            "" if quality is None else f"{quality:.4f}",
        )
    PlainConsole().print(table)
    if not table.row_count:
        click.echo("No release yet: `baguni train DATA`, then `baguni export DATA`.")


@release.command()
@click.argument("release_id")
@click.pass_obj
def show(store: ReleaseStore, release_id: str) -> None:
    """The manifest of RELEASE_ID, after verifying every part."""
    click.echo(json.dumps(dict(store.get(release_id).manifest), indent=2))


@release.command()
@click.argument("release_id")
@click.option("--drain", "drain_s", type=float, default=None, help="Unload the other releases after so many seconds.")
@click.pass_obj
def activate(store: ReleaseStore, release_id: str, drain_s: float | None) -> None:
    """Load RELEASE_ID into Triton and Milvus, check it, and serve it. The others stay loaded, ready for a rollback, unless
    --drain is given: gateways follow within seconds and then finish what they have begun, by default within 60 seconds."""
    _activate(store, release_id, drain_s)


@release.command()
@click.argument("release_id")
@click.pass_obj
def load(store: ReleaseStore, release_id: str) -> None:
    """Load RELEASE_ID into Triton and Milvus and check it, beside the active one: for experiments that choose between them."""
    from baguni.releases.activation import publish
    from baguni.stores.lease import held

    endpoints = Endpoints()
    with _shown(release_id) as show_stage, held(endpoints.redis_url, f"load {release_id}", show_stage):
        publish(store.get(release_id), endpoints, show_stage)
    click.echo(f"{release_id} is loaded.")


@release.command()
@click.pass_obj
def rollback(store: ReleaseStore) -> None:
    """Serve the release that was active before."""
    _activate(store, store.previous_id())


@release.command()
@click.option(
    "--keep", type=int, required=True, help="How many of the releases that were active last stay, at least 1."
)
@click.pass_obj
def prune(store: ReleaseStore, keep: int) -> None:
    """Delete old releases. The last --keep that were active, and those a gateway has open, stay.

    They are deleted from Triton, Milvus, Redis and this store. A release that was never active, and that no gateway has
    open, is deleted, too. With --keep 1 there is nothing to roll back to. After an interruption the same command goes on."""
    from baguni.releases.pruning import prune as prune_releases

    with _shown("prune") as show_stage:
        removed = prune_releases(store, Endpoints(), keep, show_stage)
    click.echo(f"removed {len(removed)}: {', '.join(removed) or 'nothing'}")


@release.command()
@click.argument("release_id", required=False)
@url_option
@click.pass_obj
def push(store: ReleaseStore, release_id: str | None, url: str | None) -> None:
    """Upload RELEASE_ID to an object store; without it the active release, and the pointer to it. After an interruption the
    same command sends what is missing."""
    remote = _remote(url)
    chosen = release_id or store.active_id()
    if chosen is None:
        raise NotFoundError(f"no release is active in {store.root}: name one")
    with _shown(chosen) as show_stage:
        remote.push(store.get(chosen, verify=False), show_stage)
    if release_id is None:
        remote.point_to(chosen)
    click.echo(f"{chosen} is in {remote.url}{'' if release_id else ', and active there'}.")


@release.command()
@click.argument("release_id", required=False)
@url_option
@click.option(
    "--follow", "follows", is_flag=True, help=f"Go on: look every {FOLLOW_S:g} seconds for another active release."
)
@click.option(
    "--keep",
    type=int,
    default=None,
    help="With --follow: how many releases stay on the disk, beside those that are served. [all]",
)
@click.pass_obj
def pull(store: ReleaseStore, release_id: str | None, url: str | None, follows: bool, keep: int | None) -> None:
    """Bring RELEASE_ID from an object store; without it the release that is active there, and the pointer to it. After an
    interruption the same command goes on."""
    if keep is not None and (keep < 1 or not follows):
        raise click.UsageError(f"--keep is {keep}, expected at least 1, with --follow")
    if release_id and follows:
        raise click.UsageError("--follow brings what is active: name no release with it")
    remote = _remote(url)
    with _shown(release_id or remote.url) as show_stage:
        if release_id:
            remote.pull(release_id, store, show_stage)
            click.echo(f"{release_id} is in {store.root}.")
        elif follows:
            follower = Follower(remote, store, keep, lambda: _served(Endpoints()))
            while True:
                try:
                    _show_brought(follower.look(show_stage), store)
                    follower.remove_old()
                except (BaguniError, OSError) as error:  # tried again: a full disk may be emptied
                    click.echo(indented(str(error)), err=True)
                time.sleep(FOLLOW_S)
        elif (brought := follow(remote, store, show_stage)) is not None:
            _show_brought(brought, store)
        else:
            click.echo(f"{store.root} has what is active in {remote.url}: {store.active_id() or 'nothing'}.")


def _show_brought(brought: Release | None, store: ReleaseStore) -> None:
    if brought is not None:
        click.echo(f"{brought.release_id} is in {store.root}, and active.")


def _served(endpoints: Endpoints) -> set[str]:
    from baguni.stores.redis_client import connect
    from baguni.stores.served import served

    with closing(connect(endpoints.redis_url)) as client:
        return served(client)


@contextmanager
def _shown(what: str) -> Iterator[Progress]:
    """Show the stage of something long beside a spinner."""
    with PlainConsole(stderr=True).status("") as status:
        yield lambda stage: status.update(f"{what}: {stage}")


def _remote(url: str | None) -> RemoteReleases:
    chosen = url or Endpoints().releases_url
    if not chosen:
        raise InvalidInputError("no object store is named: --url s3://BUCKET/PREFIX, or BAGUNI_RELEASES_URL", "url")
    return RemoteReleases(chosen)


def _activate(store: ReleaseStore, release_id: str, drain_s: float | None = None) -> None:
    from baguni.releases.activation import activate as activate_release

    with _shown(release_id) as show_stage:
        activate_release(store, release_id, Endpoints(), show_stage, drain_s)
    click.echo(f"{release_id} is active.")
