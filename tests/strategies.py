"""Hypothesis strategies for the domain's nouns."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from baguni.domain.catalog import AttributeValue, Item
from baguni.domain.filters import Filter
from baguni.domain.history import Action, Cancellation, Change, Deletion, HistoryEvent

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
IDS = st.sampled_from(["rye", "7", "07", "milk", "jam", "소금", "a|b", "50%"])
TIMES = st.one_of(st.integers(1, 6), st.integers(NOW_MS - 400 * DAY_MS, NOW_MS + DAY_MS))

# Ids that a shop may have: what ends a text in C, in SQL or in a path, and what sorts otherwise than it looks.
HOSTILE_IDS = st.text(
    st.sampled_from("\0\x01\n\"'%_,;/\\ aA0é소\u200b\ufeff\uffff🍜") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=6,
)


@st.composite
def history_events(draw: st.DrawFn, ids: st.SearchStrategy[str] = IDS) -> HistoryEvent:
    """Events of few items and times, so that they collide."""
    action = draw(st.sampled_from(Action))
    order_id = draw(ids) if action is Action.ORDERED else ""
    return HistoryEvent(draw(ids), action, draw(TIMES), order_id)


def history_changes() -> st.SearchStrategy[Change]:
    """Mostly events; sometimes one takes something away."""
    cancellations = st.builds(Cancellation, IDS, TIMES)
    return st.one_of(history_events(), history_events(), cancellations, st.builds(Deletion, st.integers(1, 6)))


ATTRIBUTE_TYPES = {"brand": "string", "in": "string", "size": "number", "organic": "bool"}
# What breaks out of quotes, what is a pattern elsewhere, and what is not ASCII.
AWKWARD = [
    "own",
    'a"b',
    "a\\b",
    'back\\"both\\',
    "it's",
    "라면 사리",
    "x\ny",
    "tab\t",
    "bell\b\f\x01",
    "🍜",
    "100%",
    "{x}",
    "A > B",
    "]",
    "\\u0041",
]
LEVELS = ["GROCERY", "BREAD", "RYE", *AWKWARD]
NUMBERS = [-3.0, -1.0, 0.0, 0.5, 1e-7, 1.1, 2.0, 1e300, -1e300]


def random_item(item_id: str, rng: random.Random) -> Item:
    """An item with some of ATTRIBUTE_TYPES, rarely all."""
    attributes = {
        "brand": rng.choice(AWKWARD),
        "in": rng.choice(AWKWARD),
        "size": rng.choice(NUMBERS),
        "organic": rng.random() < 0.5,
    }
    missing = rng.sample(sorted(attributes), rng.randrange(3))
    kept: dict[str, AttributeValue] = {name: value for name, value in attributes.items() if name not in missing}
    return Item(item_id, "title", tuple(rng.choices(LEVELS, k=rng.randrange(4))), kept, rng.random() < 0.7)


@st.composite
def item_filters(draw: st.DrawFn) -> Filter:
    """Conditions on the attributes of `random_item`, most of which some item satisfies."""
    attribute = draw(st.sampled_from(["category", "available", *ATTRIBUTE_TYPES]))
    if attribute == "category":
        paths = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=2).map(" > ".join)
        return Filter(attribute, any_of=tuple(draw(st.lists(paths, min_size=1, max_size=3))))
    if attribute in ("available", "organic"):
        return Filter(attribute, is_=draw(st.booleans()))
    if attribute == "size":
        bound = st.none() | st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False)
        return Filter(attribute, bounds=(draw(bound), draw(bound)))
    values = st.sampled_from(AWKWARD) | st.text(max_size=5)
    return Filter(attribute, any_of=tuple(draw(st.lists(values, min_size=1, max_size=4))))
