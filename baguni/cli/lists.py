"""`baguni recommend`, `top-items`, `similar`: look at what is served, with item names."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.clients.gateway import ClientSettings
from baguni.domain.catalog import Catalog
from baguni.domain.errors import NotFoundError
from baguni.domain.release import Release, ReleaseStore
from baguni.settings import Endpoints
from baguni.v1 import recommendation_pb2 as pb

COUNT = click.option("-k", "--count", default=10, show_default=True, help="How many items.")
ADDRESS = click.option("--address", default=None, help="The gateway's address.")


@click.command()
@click.argument("user_id")
@COUNT
@click.option("--new-only", is_flag=True, help="Only items the user never bought.")
@click.option("--category", default=None, help='Only this part of the catalogue, such as "Grocery > Cheese".')
@ADDRESS
def recommend(user_id: str, count: int, new_only: bool, category: str | None, address: str | None) -> None:
    """Ask the gateway for a list of USER_ID.

    \b
    baguni recommend 1000 --new-only
    """
    request = pb.RecommendRequest(user_id=user_id, page_size=count, exclude_purchased=new_only)
    if category:
        request.filters.append(pb.Filter(attribute="category", any_of=pb.StringSet(values=[category])))
    response = ClientSettings().gateway(address).recommend(request)
    release = opened_release(response.release_id)
    tier = pb.DegradationTier.Name(response.degradation_tier).removeprefix("DEGRADATION_TIER_").lower()
    title = f"For {user_id}: release {response.release_id}, tier {tier}, history version {response.history_version}"
    PlainConsole().print(items_table(response.items, release.catalog, title))


@click.command("top-items")
@click.argument("user_ids", nargs=-1, required=True)
@COUNT
@ADDRESS
def top_items(user_ids: tuple[str, ...], count: int, address: str | None) -> None:
    """Ask the generative head for lists of USER_IDS.

    \b
    baguni top-items 1000 1001
    """
    response = (
        ClientSettings().gateway(address).generate_top_items(pb.GenerateTopItemsRequest(user_ids=user_ids, k=count))
    )
    release = opened_release(response.release_id)
    for user in response.users:
        status = pb.UserStatus.Name(user.status).removeprefix("USER_STATUS_").lower()
        PlainConsole().print(items_table(user.items, release.catalog, f"For {user.user_id}: {status} {user.message}"))


@click.command()
@click.argument("item_id")
@click.option("--space", type=click.Choice(["content", "collaborative"]), default="content", show_default=True)
@COUNT
@ADDRESS
def similar(item_id: str, space: str, count: int, address: str | None) -> None:
    """Items like ITEM_ID: substitutes (content) or complements (collaborative).

    \b
    baguni similar 995242 --space collaborative
    """
    chosen = pb.SPACE_CONTENT if space == "content" else pb.SPACE_COLLABORATIVE
    response = (
        ClientSettings()
        .gateway(address)
        .similar_items(pb.SimilarItemsRequest(item_id=item_id, space=chosen, page_size=count))
    )
    release = opened_release(response.release_id)
    name = item_name(release.catalog, item_id)
    PlainConsole().print(items_table(response.items, release.catalog, f"{space} neighbours of {name}"))


def items_table(items: Iterable[pb.RecommendedItem], catalog: Catalog, title: str) -> Table:
    """Items with their names, scores and sources."""
    table = Table("", "item", "id", "score", "from", title=title)
    for item in items:
        sources = ", ".join(pb.Source.Name(source).removeprefix("SOURCE_").lower() for source in item.sources)
        name = item_name(catalog, item.item_id)
        table.add_row(str(item.position + 1), name, item.item_id, f"{item.score:.3f}", sources)
    return table


def item_name(catalog: Catalog, item_id: str) -> str:
    """The item's title, or its id where the release does not know it."""
    index = catalog.index.get(item_id)
    return item_id if index is None else catalog.items[index].title


def semantic_id(release: Release, item_id: str) -> str:
    """The item's codes as "12·7·255·0"; empty where the release does not know it."""
    index = release.catalog.index.get(item_id)
    return "" if index is None else "·".join(map(str, release.semantic_ids.codes_NL[index].tolist()))


def opened_release(release_id: str | None) -> Release:
    """Return a release of the store, by default the active one. Raises NotFoundError."""
    store = ReleaseStore(Endpoints().releases)
    chosen = release_id or store.active_id()
    if chosen is None:
        raise NotFoundError("no release is active: `baguni release list`, then `baguni release activate RELEASE`")
    return store.get(chosen, verify=False)
