"""What item events do: text → text encoder → item encoder → codes and vectors → Milvus, and word to every gateway.

Published Semantic IDs never move: an item keeps its codes when its text changes, only its vectors follow; a new item
takes a free suffix of its content codes. An event older than what is known of its item changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from baguni.catalog import Item
from baguni.events import Event, ItemRemoval, ItemUpsert, MalformedEvent
from baguni.inference import SyncInferenceClient
from baguni.item_index import IndexedItem, ItemIndex
from baguni.live_items import LiveItem, LiveItemWriter
from baguni.release import Release

ENCODE_TIMEOUT_S = 10.0
CHUNK = 32


class ItemUpdates:
    """Applies batches of item events to one release's collections."""

    def __init__(
        self, release: Release, inference: SyncInferenceClient, index: ItemIndex, writer: LiveItemWriter
    ) -> None:
        self._release, self._inference, self._index, self._writer = release, inference, index, writer
        self._live = writer.read_all()
        self._suffixes: dict[tuple[int, ...], set[int]] = {}
        published = release.semantic_ids.codes_NL.tolist()
        for *content, suffix in [*published, *(list(live.codes) for live in self._live.values())]:
            self._suffixes.setdefault(tuple(content), set()).add(suffix)

    def apply(self, events: Sequence[Event]) -> list[tuple[int, MalformedEvent]]:
        """Apply a batch; of several events of one item the newest counts. Raises UnavailableError; safe to repeat."""
        newest: dict[str, tuple[int, ItemUpsert | ItemRemoval]] = {}
        rejected = []
        for position, event in enumerate(events):
            try:
                item_id, checked = self._check(event)
            except MalformedEvent as error:
                rejected.append((position, error))
                continue
            if item_id not in newest or newest[item_id][1].time_ms <= checked.time_ms:
                newest[item_id] = (position, checked)
        fresh = [(p, e) for i, (p, e) in newest.items() if i not in self._live or self._live[i].time_ms < e.time_ms]
        for start in range(0, len(fresh), CHUNK):
            rejected += self._apply_chunk(fresh[start : start + CHUNK])
        return rejected

    def _check(self, event: Event) -> tuple[str, ItemUpsert | ItemRemoval]:
        if isinstance(event, ItemRemoval):
            return event.item_id, event
        if not isinstance(event, ItemUpsert):
            raise MalformedEvent("wrong_topic", "a user event on the item topic")
        types = self._release.catalog.attribute_types
        for name, value in event.item.attributes.items():
            kind = "string" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"
            if types.get(name) != kind:
                raise MalformedEvent(
                    "attribute",
                    f"attributes[{name!r}] is a {kind}, expected {types.get(name, 'a name of the catalogue')}",
                )
        return event.item.item_id, event

    def _apply_chunk(self, chunk: Sequence[tuple[int, ItemUpsert | ItemRemoval]]) -> list[tuple[int, MalformedEvent]]:
        upserts = [(p, e) for p, e in chunk if isinstance(e, ItemUpsert)]
        known = {e.item.item_id: self._known(e.item.item_id) for _, e in upserts}
        changed_text = [(p, e) for p, e in upserts if not _same_text(known[e.item.item_id], e.item)]
        encoded = self._encode([e.item for _, e in changed_text])
        live, rejected = [], []
        for position, event in chunk:
            try:
                live += self._live_item(event, encoded)
            except MalformedEvent as error:
                rejected.append((position, error))
        self._publish(live)
        return rejected

    def _live_item(self, event: ItemUpsert | ItemRemoval, encoded: dict[str, LiveItem]) -> list[LiveItem]:
        if isinstance(event, ItemRemoval):
            known = self._known(event.item_id)
            return [] if known is None else [replace(known, time_ms=event.time_ms, removed=True)]
        known = self._known(event.item.item_id)
        if known is not None and _same_text(known, event.item):
            return [replace(known, item=event.item, time_ms=event.time_ms, removed=False)]
        new = encoded[event.item.item_id]
        codes = known.codes if known is not None else self._free_id(new.codes)
        return [replace(new, codes=codes, time_ms=event.time_ms)]

    def _publish(self, live: Sequence[LiveItem]) -> None:
        present = [x for x in live if not x.removed]
        if present:
            self._index.upsert([IndexedItem(x.item, x.item_vector, x.content_vector) for x in present])
        removed = [x.item.item_id for x in live if x.removed]
        if removed:
            self._index.delete(removed)
        if live:
            self._writer.write(live)
        for item in live:
            self._live[item.item.item_id] = item
            self._suffixes.setdefault(item.codes[:-1], set()).add(item.codes[-1])

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

    def _encode(self, items: Sequence[Item]) -> dict[str, LiveItem]:
        if not items:
            return {}
        text = np.asarray([[item.text.encode()] for item in items], dtype=np.object_)
        embedding = self._inference.infer("text_encoder", {"text": text}, ENCODE_TIMEOUT_S)
        encoded = self._inference.infer("item_encoder", embedding, ENCODE_TIMEOUT_S)
        rows = zip(items, encoded["codes"].tolist(), encoded["item_vector"], encoded["content_vector"], strict=True)
        return {item.item_id: LiveItem(item, tuple(codes), v, c, time_ms=0) for item, codes, v, c in rows}

    def _free_id(self, content_codes: tuple[int, ...]) -> tuple[int, ...]:
        used = self._suffixes.get(content_codes, set())
        size = self._release.signature.codebook_sizes[-1]
        for suffix in range(size):
            if suffix not in used:
                used.add(suffix)
                self._suffixes[content_codes] = used
                return (*content_codes, suffix)
        raise MalformedEvent(
            "no_free_id", f"all {size} suffixes of the content codes {content_codes} are taken: retrain"
        )


def _same_text(known: LiveItem | None, item: Item) -> bool:
    return known is not None and known.item.text == item.text
