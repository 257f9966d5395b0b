"""Every contender on one data set, for every seed: train, rank, keep the lists. What is there is not made again, so an
interrupted run goes on; one process, one contender at a time.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.quality import ours, peers
from benchmarks.quality.lightgcn import LIGHTGCN, LightGcn, LightGcnRecipe
from benchmarks.quality.measure import Lists
from benchmarks.quality.sasrec import SASREC, SasRec, SasRecRecipe
from benchmarks.quality.shop import COLD_ORDERS, DISCOUNTS, Shop, discount_part
from benchmarks.quality.slices import cold_item_queries, cold_users, held_out_items
from benchmarks.quality.store import ColdItems, ListStore, Record
from benchmarks.quality.trees import Trees, TreesRecipe
from benchmarks.result import commit, machine
from trainer.data.queries import OrderQueries
from trainer.data.reading import load_dataset
from trainer.recipes import Recipe
from trainer.run import Progress, Run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Bars = Callable[[], AbstractContextManager[Progress]]


class Trained(Protocol):
    """What has learned and can rank."""

    @property
    def training_s(self) -> float:
        """Seconds of training, evaluation not counted."""
        ...

    @property
    def samples_per_s(self) -> float:
        """Orders trained on a second; 0 where there are no steps."""
        ...

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank for every query."""
        ...


@dataclass(frozen=True)
class Contender:
    """Something that ranks. `make(seed, progress)` trains it; without `seeded` chance has no part in it and one seed is
    enough; `asked_cold`: also asked with shortened histories."""

    name: str
    family: str
    description: str
    make: Callable[[int, Progress], Trained]
    recipe: Callable[[int], dict[str, Any]]
    seeded: bool = True
    asked_cold: bool = True
    notes: str = ""


def our_contenders(shop: Shop, recipe: Recipe) -> Iterator[Contender]:
    """A, B, C, the teacher, and what is served where that is not C itself."""
    for variant, description in ours.DESCRIPTIONS.items():
        if variant == "served" and recipe.rescored_share == 0:
            continue

        def make(seed: int, progress: Progress, variant: str = variant) -> Trained:
            return ours.train(variant, shop.folder / "runs", shop.path, replace(recipe, seed=seed), progress)

        def settings(seed: int, variant: str = variant) -> dict[str, Any]:
            seeded = replace(recipe, seed=seed)
            return (replace(seeded, generative_weight=0.0) if variant == "A" else seeded).as_dict()

        yield Contender(variant, "ours", description, make, settings, asked_cold=variant not in ours.BEAM_SEARCH)


@dataclass(frozen=True)
class FittedPeer:
    """A classic peer, fitted anew for each set of queries: that takes seconds."""

    shop: Shop
    peer: peers.Tuned
    seed: int
    training_s: float = 0.0
    samples_per_s: float = 0.0

    def lists(self, queries: OrderQueries) -> Lists:
        """Rank for every query."""
        shop = self.shop
        return peers.peer_lists(
            shop.dataset, queries, self.peer, shop.train_until_ms, lambda: shop.text_NT, seed=self.seed
        )


def peer_contenders(shop: Shop) -> Iterator[Contender]:
    """The classic peers."""
    for name, peer in peers.PEERS[shop.data].items():

        def make(seed: int, progress: Progress, peer: peers.Tuned = peer) -> Trained:
            return FittedPeer(shop, peer, seed)

        def settings(seed: int, peer: peers.Tuned = peer) -> dict[str, Any]:
            return {"all": repr(peer.all), "novel": repr(peer.novel)}

        description = " ".join((inspect.getdoc(type(peer.all)) or "").split("\n\n")[0].split())
        yield Contender(name, "peer", description, make, settings, seeded=False)


def trained_peers(shop: Shop) -> Iterator[Contender]:
    """Neural peers, which are trained in an environment of their own."""
    sasrec, lightgcn = SASREC[shop.data], LIGHTGCN[shop.data]
    yield Contender(
        "SASRec",
        "peer",
        "A Transformer over the sequence of order lines, softmax loss.",
        partial(_train_sasrec, shop, sasrec),
        partial(_settings, sasrec),
    )
    yield Contender(
        "LightGCN",
        "peer",
        "A graph of users and items: vectors are means of the neighbours', layer by layer.",
        partial(_train_lightgcn, shop, lightgcn),
        partial(_settings, lightgcn),
        asked_cold=False,  # it has learned a vector of each user from all their orders
    )


def trees_contender(shop: Shop) -> Contender:
    """Trees on the numbers that our model reads."""

    def make(seed: int, progress: Progress) -> Trained:
        return Trees.train(shop.dataset, shop.train_until_ms, replace(TreesRecipe(), seed=seed), progress)

    description = (
        "Gradient-boosted trees over what our model reads of a user's items, and EASE's first among the others."
    )
    settings = partial(_settings, TreesRecipe())
    return Contender("trees", "peer", description, make, settings, asked_cold=False)


def _train_sasrec(shop: Shop, recipe: SasRecRecipe, seed: int, progress: Progress) -> SasRec:
    """Train it on what the others are trained on. With `patience`, it leaves out each user's newest line before the test month
    to find the best epoch, as the literature does. Where that line is trained on, it is trained anew for as many epochs."""
    recipe, folder, before_ms = replace(recipe, seed=seed), shop.folder / "runs", shop.queries.start_ms
    model = SasRec.train(shop.dataset, before_ms, recipe, folder / f"sasrec-seed{seed}", progress)
    if not recipe.patience or shop.until_ms is not None:
        return model
    again = replace(recipe, max_epochs=model.process.facts["best_epoch"], patience=0)
    return SasRec.train(shop.dataset, before_ms, again, folder / f"sasrec-again-seed{seed}", progress)


def _train_lightgcn(shop: Shop, recipe: LightGcnRecipe, seed: int, progress: Progress) -> LightGcn:
    folder = shop.folder / "runs" / f"lightgcn-seed{seed}"
    return LightGcn.train(shop.dataset, shop.train_until_ms, replace(recipe, seed=seed), folder, progress)


def _settings(recipe: DataclassInstance, seed: int) -> dict[str, Any]:
    return asdict(recipe) | {"seed": seed}


def run_contenders(shop: Shop, contenders: Sequence[Contender], seeds: Sequence[int], bars: Bars) -> None:
    """Make all lists that are missing."""
    for contender in contenders:
        for seed in seeds if contender.seeded else seeds[:1]:
            if _missing(shop.store, contender, seed):
                with bars() as progress:
                    run_contender(shop, contender, seed, progress)


def run_contender(shop: Shop, contender: Contender, seed: int, progress: Progress) -> None:
    """Train one contender with one seed, if need be, and make its missing lists."""
    store, missing = shop.store, _missing(shop.store, contender, seed)
    title = f"{contender.name}, seed {seed}"
    trained = contender.make(seed, progress)
    for number, part in enumerate(missing):
        progress(title, number, len(missing), f"ranking {part or 'all orders'}")
        queries = shop.queries if not part else cold_users(shop.queries, int(part.removeprefix("orders")))
        started = time.monotonic()
        lists = trained.lists(queries)
        if not part:
            ranking_ms = 1000 * (time.monotonic() - started) / len(queries)
            store.save_record(_record(contender, seed, trained, ranking_ms))
        store.save(contender.name, seed, lists, part)
    progress(title, len(missing), len(missing), "done")


def run_cold_items(shop: Shop, recipe: Recipe, progress: Progress) -> None:
    """Train C without a random 5 % of the items and let it rank these. Needs the same seed's run of C."""
    if shop.store.has("C", recipe.seed, "cold"):
        return
    held_out = held_out_items(len(shop.dataset.catalog), shop.frequency_N, recipe.seed)
    data = ours.write_without_items(
        shop.path, shop.folder / f"without-items-seed{recipe.seed}", shop.dataset, held_out, shop.queries.start_ms
    )
    model = ours.train_without_items(shop.folder / "runs", data, recipe, progress)
    query = cold_item_queries(shop.queries, held_out)
    asked = ours.same_orders(shop.queries.at(query), load_dataset(data))
    shop.store.save_cold("C", recipe.seed, ColdItems(held_out, query, model.held_out_lists(asked, held_out)))


def run_discounts(shop: Shop, recipe: Recipe, progress: Progress) -> None:
    """Rank with C at each discount of what is popular. Needs the same seed's run of C."""
    run, queries = Run(shop.folder / "runs" / f"seed{recipe.seed}", shop.path, recipe), shop.queries
    for number, discount in enumerate(DISCOUNTS):
        part = discount_part(discount)
        if not shop.store.has("C", recipe.seed, part):
            served = replace(recipe, popularity_discount=discount)
            model = ours.TrainedModel(Run(run.path, run.dataset_path, served), "C", 0.0)
            shop.store.save("C", recipe.seed, model.lists(queries), part)
        progress("discounts", number + 1, len(DISCOUNTS), f"{discount}")


def _missing(store: ListStore, contender: Contender, seed: int) -> list[str]:
    parts = ["", *(f"orders{number}" for number in COLD_ORDERS if contender.asked_cold)]
    return [part for part in parts if not store.has(contender.name, seed, part)]


def _record(contender: Contender, seed: int, trained: Trained, ranking_ms: float) -> Record:
    return Record(
        contender=contender.name,
        family=contender.family,
        description=contender.description,
        seed=seed,
        recipe=contender.recipe(seed),
        training_s=round(trained.training_s, 1),
        samples_per_s=round(trained.samples_per_s, 1),
        ranking_ms=round(ranking_ms, 2),
        notes=contender.notes,
        commit=commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
    )
