"""Apply item events to a release: text → text encoder → item encoder → codes and vectors → Milvus, and Redis for gateways.

A published Semantic ID never changes: an item keeps its codes when its text changes, and only its vectors follow. A new item
takes a free suffix of its content codes. While the text stays, the vectors stay, and only the fields of filters are
written. An event that is older than the last one applied to its item changes nothing.

An attribute that the release's catalogue does not declare, or declares with another type, is left out of its item: a shop adds
and renames attributes between two releases, and prices and availability must follow meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis

from baguni.clients.inference import Arrays, SyncInferenceClient
from baguni.clients.item_index import IndexedItem, ItemIndex
from baguni.domain.catalog import AttributeValue, Item
from baguni.domain.errors import RefusedError, UnavailableError
from baguni.domain.events import Event, ItemRemoval, ItemUpsert, MalformedEvent
from baguni.domain.release import Release
from baguni.exposition import BoundedNames
from baguni.settings import Endpoints
from baguni.stores.live_items import LiveItem, LiveItemWriter

log = logging.getLogger(__name__)
ENCODE_TIMEOUT_S = 5.0
ITEM_BATCH = 32  # one call of the encoders
MAX_NAMES = 50  # of attributes that are not declared and are told apart
PASSES = 10  # each brings what arrived during the one before, which is less every time

ItemEvent = ItemUpsert | ItemRemoval
Rejections = list[tuple[int, MalformedEvent]]
OnLeftOut = Callable[[str, str], None]
"""Called with the name of an attribute that was left out of an item, and the problem: `undeclared` or `type`. The names are
bounded."""


@dataclass(frozen=True)
class ItemServers:
    """The servers that contain one release's items."""

    inference: SyncInferenceClient
    index: ItemIndex
    live_items: LiveItemWriter

    @classmethod
    def opened(cls, release: Release, endpoints: Endpoints, client: redis.Redis) -> ItemServers:
        """Connect. Raises UnavailableError."""
        index = ItemIndex(endpoints.milvus_uri, release.release_id, release.catalog)
        inference = SyncInferenceClient(endpoints.triton_url, release.release_id, release.signature)
        return cls(inference, index, LiveItemWriter(client, release.release_id))

    def close(self) -> None:
        """Close the connections."""
        self.inference.close()
        self.index.close()


class DeclaredAttributes:
    """Fits items to the attributes that a catalogue declares, and logs the first of each attribute that is left out."""

    def __init__(self, types: Mapping[str, str], on_left_out: OnLeftOut) -> None:
        self._types, self._on_left_out = types, on_left_out
        self._name = BoundedNames(MAX_NAMES + len(types), types)
        self._logged: set[tuple[str, str]] = set()

    def fit(self, item: Item) -> Item:
        """Return the item without what is not declared; the item itself if everything is."""
        left_out = self._problems(item)
        if not left_out:
            return item
        return replace(item, attributes={name: x for name, x in item.attributes.items() if name not in left_out})

    def report(self, item: Item) -> None:
        """Report what `fit` leaves out of an item."""
        for name, problem in self._problems(item).items():
            label = self._name(name)
            self._on_left_out(label, problem)
            if (label, problem) not in self._logged:
                self._logged.add((label, problem))
                log.warning("left out of item=%r: %s", item.item_id, self._message(name, item.attributes[name]))

    def _problems(self, item: Item) -> dict[str, str]:
        types = self._types
        return {
            name: "type" if name in types else "undeclared"
            for name, value in item.attributes.items()
            if types.get(name) != _type_of(value)
        }

    def _message(self, name: str, value: AttributeValue) -> str:
        if name in self._types:
            return f"attributes[{name!r}] is a {_type_of(value)}, expected a {self._types[name]}"
        return f"attributes[{name!r}] is not declared, expected one of {', '.join(sorted(self._types))}"


class ItemUpdates:
    """Applies batches of item events to one release. Any number of consumers may do so, each for its own items."""

    def __init__(
        self, release: Release, servers: ItemServers, on_left_out: OnLeftOut = lambda attribute, problem: None
    ) -> None:
        self._release, self._servers = release, servers
        self._attributes = DeclaredAttributes(release.catalog.attribute_types, on_left_out)
        self._live: dict[str, LiveItem] = {}
        self._carried_ids: dict[str, tuple[int, ...]] = {}
        self._published_suffixes: dict[tuple[int, ...], set[int]] = {}
        for *content, suffix in [*release.semantic_ids.codes_NL.tolist(), *release.reserved_ids.values()]:
            self._published_suffixes.setdefault(tuple(content), set()).add(suffix)

    def apply(self, events: Iterable[Event]) -> Rejections:
        """Apply a batch: of several events of one item, the newest. Safe to repeat. Raises UnavailableError."""
        return self._apply(events, self._changes_something)

    def carry(self, changes: Iterable[LiveItem]) -> Rejections:
        """Apply what another release has made of items. A new one keeps its Semantic ID if this release gives its text the same
        codes and nobody else has the ID. Safe to repeat. Raises UnavailableError."""
        changes = list(changes)
        self._carried_ids.update((live.item.item_id, live.codes) for live in changes)
        return self._apply(map(_event, changes), self._carries_something)

    def _apply(self, events: Iterable[Event], is_fresh: Callable[[ItemEvent], bool]) -> Rejections:
        self._live.update((live.item.item_id, live) for live in self._servers.live_items.changes())
        newest: dict[str, tuple[int, ItemEvent]] = {}
        rejected: Rejections = []
        for position, event in enumerate(events):
            if not isinstance(event, ItemUpsert | ItemRemoval):
                rejected.append((position, MalformedEvent("wrong_topic", "a user event on the item topic")))
            elif event.item_id not in newest or newest[event.item_id][1].time_ms <= event.time_ms:
                newest[event.item_id] = (position, event)
        fresh = list(self._fresh(newest.values(), is_fresh))
        for start in range(0, len(fresh), ITEM_BATCH):
            rejected += self._apply_batch(fresh[start : start + ITEM_BATCH])
        return rejected

    def _fresh(
        self, newest: Iterable[tuple[int, ItemEvent]], is_fresh: Callable[[ItemEvent], bool]
    ) -> Iterator[tuple[int, ItemEvent]]:
        """Yield the events that change something, with the attributes that are declared. What is left out of the others was
        reported when they were new."""
        for position, event in newest:
            fitted = replace(event, item=self._attributes.fit(event.item)) if isinstance(event, ItemUpsert) else event
            if is_fresh(fitted):
                if isinstance(event, ItemUpsert):
                    self._attributes.report(event.item)
                yield position, fitted

    def _changes_something(self, event: ItemEvent) -> bool:
        known = self._known(event.item_id)
        if known is None:
            return isinstance(event, ItemUpsert)
        if known.time_ms != event.time_ms:
            return known.time_ms < event.time_ms
        if isinstance(event, ItemRemoval):
            return not known.removed
        return known.removed or known.item != event.item

    def _carries_something(self, event: ItemEvent) -> bool:
        """The same for what another release has. Where the event itself was applied here already, the other release may have
        left out attributes that this one declares."""
        known = self._known(event.item_id)
        if known is not None and not known.removed and known.time_ms == event.time_ms and isinstance(event, ItemUpsert):
            theirs = event.item.attributes
            shared = {name: value for name, value in known.item.attributes.items() if name in theirs}
            if replace(known.item, attributes=shared) == event.item:
                return False
        return self._changes_something(event)

    def _apply_batch(self, batch: Sequence[tuple[int, ItemEvent]]) -> Rejections:
        vectors = self._encode([e.item for _, e in batch if isinstance(e, ItemUpsert) and not self._has_text(e.item)])
        live, rejected = [], []
        for position, event in batch:
            known = self._known(event.item_id)
            if isinstance(event, ItemRemoval):
                assert known is not None
                live.append(replace(known, time_ms=event.time_ms, removed=True))
                continue
            new = vectors.get(event.item_id, known)
            assert new is not None
            codes = known.codes if known is not None else self._new_id(event.item_id, new.codes)
            if codes is None:
                message = f"every suffix of the content codes {new.codes} is taken: train a new release"
                rejected.append((position, MalformedEvent("no_free_id", message)))
                continue
            live.append(replace(new, item=event.item, codes=codes, time_ms=event.time_ms, removed=False))
        self._publish(live)
        return rejected

    def _publish(self, live: Sequence[LiveItem]) -> None:
        """Write items where they are searched, then where they are announced: a gateway that knows an item can find it. Where
        another consumer has announced an event of an item meanwhile, the two may have reached the index in another order: it
        gets the latest once more."""
        while live:
            present = [IndexedItem(x.item, x.item_vector, x.content_vector) for x in live if not x.removed]
            removed = [x.item.item_id for x in live if x.removed]
            if present:
                self._servers.index.upsert(present)
            if removed:
                self._servers.index.delete(removed)
            known_ms = {item.item.item_id: self._live_ms(item.item.item_id) for item in live}
            there_ms = self._servers.live_items.write(live, known_ms)
            self._live.update(
                (item.item.item_id, item) for item in live if there_ms.get(item.item.item_id, -1) <= item.time_ms
            )
            if there_ms:
                self._live.update((item.item.item_id, item) for item in self._servers.live_items.changes())
            latest = (self._live.get(item_id) for item_id in there_ms)
            live = [item for item in latest if item is not None and item.time_ms >= there_ms[item.item.item_id]]

    def _live_ms(self, item_id: str) -> int:
        """Return the time of the last event that this process knows of an item, -1 if it knows none."""
        return self._live[item_id].time_ms if item_id in self._live else -1

    def _known(self, item_id: str) -> LiveItem | None:
        """The item as it is now: from an earlier event, or from the release."""
        if item_id in self._live:
            return self._live[item_id]
        index = self._release.catalog.index.get(item_id)
        if index is None:
            return None
        release = self._release
        codes = tuple(release.semantic_ids.codes_NL[index].tolist())
        vectors = (release.item_vectors[index], release.content_vectors[index])
        return LiveItem(release.catalog.items[index], codes, *vectors, time_ms=0)

    def _has_text(self, item: Item) -> bool:
        known = self._known(item.item_id)
        return known is not None and known.item.text == item.text

    def _encode(self, items: Sequence[Item]) -> dict[str, LiveItem]:
        """Items with the vectors of their texts; `codes` are content codes, without a suffix."""
        if not items:
            return {}
        try:
            encoded = self._encoded([item.text for item in items])
        except RefusedError:
            self._check_models()
            raise
        rows = zip(items, encoded["codes"].tolist(), encoded["item_vector"], encoded["content_vector"], strict=True)
        return {item.item_id: LiveItem(item, tuple(codes), v, c, time_ms=0) for item, codes, v, c in rows}

    def _encoded(self, texts: Sequence[str]) -> Arrays:
        text = np.asarray([[text.encode()] for text in texts], dtype=np.object_)
        embedding = self._servers.inference.infer("text_encoder", {"text": text}, ENCODE_TIMEOUT_S)
        return self._servers.inference.infer("item_encoder", embedding, ENCODE_TIMEOUT_S)

    def _check_models(self) -> None:
        """Raise UnavailableError if Triton gives no numbers for a text that it had numbers for when the release was made: then
        no item is to blame."""
        try:
            self._encoded([self._release.catalog.items[0].text])
        except RefusedError as error:
            raise UnavailableError("triton", str(error)) from error

    def _new_id(self, item_id: str, content_codes: tuple[int, ...]) -> tuple[int, ...] | None:
        if item_id in self._release.reserved_ids:
            return self._release.reserved_ids[item_id]
        num_suffixes = self._release.signature.codebook_sizes[-1]
        published = self._published_suffixes.get(content_codes, set())
        *carried, suffix = self._carried_ids.get(item_id, (-1,))
        wanted = suffix if tuple(carried) == content_codes and suffix < num_suffixes else -1
        return self._servers.live_items.claim(item_id, content_codes, num_suffixes, published, wanted)


def carry_over(source: LiveItemWriter, updates: ItemUpdates) -> int:
    """Apply the changes of items that another release, `source`, has, those that arrive meanwhile included, so that a switch
    reverts nothing. What the release does not accept, for example an item for which it has no Semantic ID, is logged. Returns
    the number of items. Safe to repeat. Raises UnavailableError."""
    num_items = 0
    for _ in range(PASSES):
        changes = source.changes()
        if not changes:
            break
        rejected = updates.carry(changes)
        num_items += len(changes) - len(rejected)
        for position, error in rejected:
            log.warning("not carried over item=%r error=%s", changes[position].item.item_id, error)
    return num_items


def _type_of(value: AttributeValue) -> str:
    return "string" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def _event(live: LiveItem) -> ItemEvent:
    """Return the event that made an item what it is."""
    return ItemRemoval(live.item.item_id, live.time_ms) if live.removed else ItemUpsert(live.item, live.time_ms)
