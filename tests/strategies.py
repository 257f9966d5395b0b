"""Hypothesis strategies for the domain's nouns."""

from __future__ import annotations

from hypothesis import strategies as st

from baguni.catalog import Item
from baguni.history import Action, HistoryEvent

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
IDS = st.sampled_from(["rye", "milk", "jam", "소금", "a|b", "50%"])
TIMES = st.one_of(st.integers(1, 6), st.integers(NOW_MS - 400 * DAY_MS, NOW_MS + DAY_MS))


@st.composite
def history_events(draw: st.DrawFn, ids: st.SearchStrategy[str] = IDS) -> HistoryEvent:
    """Events of few items and times, so that they collide."""
    action = draw(st.sampled_from(Action))
    order_id = draw(ids) if action is Action.ORDERED else ""
    return HistoryEvent(draw(ids), action, draw(TIMES), order_id)


ATTRIBUTE_TYPES = {"brand": "string", "in": "string", "size": "number", "organic": "bool"}
# What breaks out of quotes, what is a pattern elsewhere, and what is not ASCII.
AWKWARD = st.sampled_from(
    [
        "own",
        'a"b',
        "a\\b",
        'back\\"both\\',
        "it's",
        "라면 사리",
        "x\ny",
        "tab\t",
        "🍜",
        "100%",
        "{x}",
        "A > B",
        "]",
        "\\u0041",
    ]
)
LEVELS = st.one_of(st.sampled_from(["GROCERY", "BREAD", "RYE"]), AWKWARD)
NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([0.5, 1e-7, 1e300, -1e300, 1.1]))


@st.composite
def items(draw: st.DrawFn, item_id: str = "item") -> Item:
    """An item with some of ATTRIBUTE_TYPES, not always all."""
    values: dict[str, st.SearchStrategy[str | float | bool]] = {
        "brand": AWKWARD,
        "in": AWKWARD,
        "size": NUMBERS,
        "organic": st.booleans(),
    }
    names = draw(st.sets(st.sampled_from(sorted(values))))
    attributes = {name: draw(values[name]) for name in sorted(names)}
    path = tuple(draw(st.lists(LEVELS, max_size=3)))
    return Item(item_id, "title", path, attributes, draw(st.booleans()))
