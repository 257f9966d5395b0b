"""What the models read of a history: the one place where raw events become tensors, for training and serving alike.

A history is *summarised*: one token per distinct item, with the counts, the recency and the rhythm of what the user did
with it, because what a household buys regularly reaches back further than any window of raw events. Orders are
positions: 1 for the newest order and for the clicks that led to it, 2 for the one before, 0 for clicks since the newest
order. Positions count back from the newest order, so a new event never renumbers what is stored.

Knows nothing of storage, of torch, or of how the catalogue was built: items arrive as dense indexes.
"""

# B = batch, E = events of the whole batch, S = tokens (sequence length), F = features of a token, C = features of the
# context, G = (user, item) groups of the whole batch

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from baguni.domain.history import Action, HistoryEvent

NUM_FEATURES = 17
DECAYED_SHARE = 16  # the feature that models only weigh, and do not read
NUM_CONTEXT = 10
NUM_POSITIONS = 64  # older orders share the last position
NUM_ACTIONS = 8  # bit set: 1 ordered, 2 clicked, 4 carted; 0 is padding
DAY_MS = 86_400_000
DECAY_DAYS = (7.0, 30.0, 90.0, 270.0)
ORDER_DECAY_DAYS = 270.0  # an order counts e^(-age / this) …
ORDER_DECAY = 0.97  # … times this to the power of the number of orders since

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class EventBatch:
    """The events of B users, one after the other.

    row_E:    which user of the batch, 0..B-1, ascending
    item_E:   item index; -1 where the catalogue does not know the item: such events are ignored
    action_E: `Action`
    order_E:  a number per order, unique within the batch; -1 where the action is not ORDERED
    time_E:   milliseconds, UTC
    """

    row_E: Int64
    item_E: Int64
    action_E: Int64
    order_E: Int64
    time_E: Int64


@dataclass(frozen=True)
class ModelInputs:
    """Tokens, best first, padded at the end. Padding has item -1, position 0, actions 0 and features 0.

    item_BS:      item index, -1 = padding
    position_BS:  orders back: 0 = since the newest order, 1 = the newest order
    actions_BS:   bit set of what was done with the item, see NUM_ACTIONS
    features_BSF: see `token_features`
    context_BC:   see `context_features`
    """

    item_BS: Int32
    position_BS: Int32
    actions_BS: Int32
    features_BSF: Float32
    context_BC: Float32


def sequence_arrays(inputs: ModelInputs, codes_NL: Int32) -> dict[str, NDArray[Any]]:
    """Return what the models read of their items and tokens, by the names of `baguni.domain.signature`.

    `codes_NL` has a row for every item index in `inputs`. Padding has item_index 0 and codes of -1.
    """
    known_BS1 = inputs.item_BS[:, :, None] >= 0
    return {
        "item_index": inputs.item_BS + np.int32(1),
        "codes": np.where(known_BS1, codes_NL[inputs.item_BS], np.int32(-1)),
        "position": inputs.position_BS,
        "actions": inputs.actions_BS,
        "features": inputs.features_BSF,
        "context": inputs.context_BC,
    }


def first_tokens(inputs: ModelInputs, length: int) -> ModelInputs:
    """Return the inputs with at most `length` tokens a row."""
    return ModelInputs(
        inputs.item_BS[:, :length],
        inputs.position_BS[:, :length],
        inputs.actions_BS[:, :length],
        inputs.features_BSF[:, :length],
        inputs.context_BC,
    )


def longest(inputs: ModelInputs) -> int:
    """Return the number of tokens of the longest row."""
    return int((inputs.item_BS >= 0).sum(axis=1).max(initial=0))


def event_batch(histories: Sequence[Sequence[HistoryEvent]], item_index: dict[str, int]) -> EventBatch:
    """Flatten histories for `model_inputs`; `item_index` maps an item_id to its index."""
    num_events_B = [len(history) for history in histories]
    events = list(chain.from_iterable(histories))
    if not events:
        return EventBatch(*[np.zeros(0, np.int64)] * 5)
    item_ids, actions, times, order_ids = zip(*events, strict=True)
    numbers = {order_id: number for number, order_id in enumerate(dict.fromkeys(order_ids))}
    row_E = np.repeat(np.arange(len(histories), dtype=np.int64), num_events_B)
    action_E = np.frombuffer(bytes(actions), np.uint8).astype(np.int64)
    order_E = row_E * len(numbers) + np.fromiter(map(numbers.__getitem__, order_ids), np.int64, len(events))
    return EventBatch(
        row_E,
        np.fromiter((item_index.get(item_id, -1) for item_id in item_ids), np.int64, len(events)),
        action_E,
        np.where(action_E == Action.ORDERED, order_E, -1),
        np.fromiter(times, np.int64, len(events)),
    )


def model_inputs(events: EventBatch, now_ms_B: Int64, max_tokens: int, store_timezone: str = "UTC") -> ModelInputs:
    """Summarise each user's events as of `now_ms_B`. Events later than now count as just happened.

    The order of events within a user does not matter, and neither do the other users of the batch.
    """
    now_ms_B = np.asarray(now_ms_B, dtype=np.int64)
    events = _known_items(events)
    order_row_O, order_time_O, order_of_E = _orders(events)
    position_E = _positions(events, order_row_O, order_time_O, len(now_ms_B))
    groups = _group_by_item(events, position_E, order_of_E, now_ms_B)
    num_orders_B = np.bincount(order_row_O, minlength=len(now_ms_B))
    features_GF = token_features(groups, num_orders_B)
    slot_G = _rank_in_row(groups.row_G, -groups.importance_G, groups.item_G)
    keep = slot_G < max_tokens
    at = (groups.row_G[keep], slot_G[keep])
    shape = (len(now_ms_B), max_tokens)
    item_BS = np.full(shape, -1, np.int32)
    position_BS, actions_BS = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    features_BSF = np.zeros((*shape, NUM_FEATURES), np.float32)
    item_BS[at] = groups.item_G[keep]
    position_BS[at] = groups.position_G[keep]
    actions_BS[at] = groups.actions_G[keep]
    features_BSF[at] = features_GF[keep]
    lines_O = np.bincount(order_of_E[order_of_E >= 0], minlength=len(order_row_O))
    context_BC = context_features(now_ms_B, order_row_O, order_time_O, lines_O, store_timezone)
    return ModelInputs(item_BS, position_BS, actions_BS, features_BSF, context_BC)


def line_inputs(events: EventBatch, now_ms_B: Int64, max_tokens: int, store_timezone: str = "UTC") -> ModelInputs:
    """Return one token for each event, the newest first, with its action and its order's position: the sentence of the original
    design. Features are 0. `model_inputs` is what is served; this is the form that it is compared with."""
    now_ms_B = np.asarray(now_ms_B, dtype=np.int64)
    events = _known_items(events)
    order_row_O, order_time_O, order_of_E = _orders(events)
    position_E = _positions(events, order_row_O, order_time_O, len(now_ms_B))
    slot_E = _rank_in_row(events.row_E, position_E, -events.time_E, events.item_E)
    keep = slot_E < max_tokens
    at = (events.row_E[keep], slot_E[keep])
    shape = (len(now_ms_B), max_tokens)
    item_BS = np.full(shape, -1, np.int32)
    position_BS, actions_BS = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    item_BS[at] = events.item_E[keep]
    position_BS[at] = np.minimum(position_E[keep], NUM_POSITIONS - 1)
    actions_BS[at] = 1 << (events.action_E[keep] - 1)
    lines_O = np.bincount(order_of_E[order_of_E >= 0], minlength=len(order_row_O))
    context_BC = context_features(now_ms_B, order_row_O, order_time_O, lines_O, store_timezone)
    return ModelInputs(item_BS, position_BS, actions_BS, np.zeros((*shape, NUM_FEATURES), np.float32), context_BC)


@dataclass(frozen=True)
class _Groups:
    """Every (user, item) pair of a batch, with what the user did with the item. Ages are in days."""

    row_G: Int64
    item_G: Int64
    position_G: Int64
    actions_G: Int64
    num_orders_G: Int64
    num_other_G: Int64
    first_order_age_G: NDArray[np.float64]
    last_order_age_G: NDArray[np.float64]
    last_event_age_G: NDArray[np.float64]
    orders_since_last_G: Int64
    decayed_GD: NDArray[np.float64]
    decayed_share_G: NDArray[np.float64]
    importance_G: NDArray[np.float64]


def token_features(groups: _Groups, num_orders_B: Int64) -> Float32:
    """Return [G, F]: counts, recency and rhythm of an item in a user's history. Every column lies roughly in [-1, 5].

    Releases of earlier versions have fewer features, always the first of these: new ones are appended.
    """
    ordered = groups.num_orders_G > 0
    count = groups.num_orders_G
    interval = (groups.first_order_age_G - groups.last_order_age_G) / np.maximum(count - 1, 1)
    repeated = count > 1
    due = np.where(repeated, groups.last_order_age_G / np.maximum(interval, 0.5), 0.0)
    share = count / np.maximum(num_orders_B[groups.row_G], 1)
    columns = [
        np.log1p(count),
        np.log1p(groups.num_other_G),
        np.where(ordered, np.log1p(groups.last_order_age_G), 0.0) / 2,
        np.where(ordered, np.log1p(groups.first_order_age_G), 0.0) / 2,
        np.log1p(groups.last_event_age_G) / 2,
        np.where(ordered, np.log1p(groups.orders_since_last_G), 0.0) / 2,
        share * 2,
        *np.log1p(groups.decayed_GD).T,
        np.where(repeated, np.log1p(interval), 0.0) / 2,
        np.log1p(np.minimum(due, 20.0)),
        repeated.astype(float),
        ordered & (groups.orders_since_last_G == 0),
        (groups.num_other_G > 0) & (groups.position_G == 0),
        groups.decayed_share_G,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def context_features(
    now_ms_B: Int64, order_row_O: Int64, order_time_O: Int64, lines_O: Int64, store_timezone: str
) -> Float32:
    """Return the features of the request, not of an item: time since the last order, order count and size, hour, weekday."""
    num_users = len(now_ms_B)
    count_B = np.bincount(order_row_O, minlength=num_users)
    lines_B = np.bincount(order_row_O, weights=lines_O, minlength=num_users)
    last_B = np.full(num_users, -1, np.int64)
    np.maximum.at(last_B, order_row_O, order_time_O)
    first_B = np.full(num_users, np.iinfo(np.int64).max)
    np.minimum.at(first_B, order_row_O, order_time_O)
    known = count_B > 0
    since_days = np.where(known, np.maximum(now_ms_B - last_B, 0), 0) / DAY_MS
    span_days = np.where(known, last_B - np.where(known, first_B, last_B), 0) / DAY_MS
    hour_B, weekday_B = _store_clock(now_ms_B, store_timezone)
    columns = [
        known.astype(float),
        np.log1p(since_days) / 2,
        (since_days < 1).astype(float) * known,
        np.log1p(count_B) / 2,
        np.log1p(lines_B / np.maximum(count_B, 1)) / 2,
        np.log1p(span_days / np.maximum(count_B - 1, 1)) / 2,
        np.sin(2 * np.pi * hour_B / 24),
        np.cos(2 * np.pi * hour_B / 24),
        np.sin(2 * np.pi * weekday_B / 7),
        np.cos(2 * np.pi * weekday_B / 7),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _known_items(events: EventBatch) -> EventBatch:
    known = events.item_E >= 0
    if known.all():
        return events
    return EventBatch(
        events.row_E[known], events.item_E[known], events.action_E[known], events.order_E[known], events.time_E[known]
    )


def _orders(events: EventBatch) -> tuple[Int64, Int64, Int64]:
    """Orders sorted by (user, time): their users, their times, and each event's order among them (-1 = none)."""
    is_order = events.order_E >= 0
    number, first, inverse = np.unique(events.order_E[is_order], return_index=True, return_inverse=True)
    time_O = np.zeros(len(number), np.int64)
    np.maximum.at(time_O, inverse, events.time_E[is_order])
    row_O = events.row_E[is_order][first]
    by_time = np.lexsort((number, time_O, row_O))
    rank = np.empty(len(number), np.int64)
    rank[by_time] = np.arange(len(number))
    order_of_E = np.full(len(events.row_E), -1, np.int64)
    order_of_E[is_order] = rank[inverse]
    return row_O[by_time], time_O[by_time], order_of_E


def _positions(events: EventBatch, order_row_O: Int64, order_time_O: Int64, num_users: int) -> Int64:
    """Return the number of distinct order times of the user at or after each event.

    Counting times, not orders, gives two orders of the same instant one position: their sequence is unknowable.
    """
    if len(order_row_O) == 0:
        return np.zeros(len(events.row_E), np.int64)
    new = np.r_[True, (np.diff(order_row_O) != 0) | (np.diff(order_time_O) != 0)]
    row_T, time_T = order_row_O[new], order_time_O[new]
    end_B = np.cumsum(np.bincount(row_T, minlength=num_users))
    order_time_E = events.time_E.copy()
    ordered = events.order_E >= 0
    if ordered.any():  # all lines of an order stand where the order stands
        number, inverse = np.unique(events.order_E[ordered], return_inverse=True)
        latest = np.zeros(len(number), np.int64)
        np.maximum.at(latest, inverse, events.time_E[ordered])
        order_time_E[ordered] = latest[inverse]
    merged_row = np.r_[row_T, events.row_E]
    merged_time = np.r_[time_T, order_time_E]
    is_event = np.r_[np.zeros(len(row_T), np.int64), np.ones(len(events.row_E), np.int64)]
    # An event at the instant of an order belongs to it: events sort before equal order times.
    sequence = np.lexsort((1 - is_event, merged_time, merged_row))
    times_before = np.cumsum(1 - is_event[sequence])
    before_E = np.empty(len(events.row_E), np.int64)
    at_event = is_event[sequence] == 1
    before_E[sequence[at_event] - len(row_T)] = times_before[at_event]
    return end_B[events.row_E] - before_E


def _sum_of_orders(
    row_E: Int64, order_of_E: Int64, weight_E: NDArray[np.float64], num_users: int
) -> NDArray[np.float64]:
    """Return [B], the sum over each user's orders of what the lines of an order weigh; the largest, if they differ."""
    ordered = order_of_E >= 0
    num_orders = int(order_of_E.max(initial=-1)) + 1
    weight_O, row_O = np.zeros(num_orders), np.zeros(num_orders, np.int64)
    np.maximum.at(weight_O, order_of_E[ordered], weight_E[ordered])
    row_O[order_of_E[ordered]] = row_E[ordered]
    return np.bincount(row_O, weights=weight_O, minlength=num_users).astype(np.float64)


def _group_by_item(events: EventBatch, position_E: Int64, order_of_E: Int64, now_ms_B: Int64) -> _Groups:
    key_E = events.row_E * (int(events.item_E.max(initial=0)) + 1) + events.item_E
    _, first, group_E = np.unique(key_E, return_index=True, return_inverse=True)
    num_groups = len(first)
    age_E = np.maximum(now_ms_B[events.row_E] - events.time_E, 0) / DAY_MS
    ordered_E = events.action_E == Action.ORDERED

    def total(weight_E: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(group_E, weights=weight_E, minlength=num_groups).astype(np.float64)

    def smallest(value_E: NDArray[np.float64], of_E: NDArray[np.bool_]) -> NDArray[np.float64]:
        result = np.full(num_groups, np.inf)
        np.minimum.at(result, group_E[of_E], value_E[of_E])
        return result

    anything = np.ones(len(age_E), bool)
    num_orders = total(ordered_E.astype(float)).astype(np.int64)
    has_order = num_orders > 0
    last_age = smallest(age_E, ordered_E)
    first_age = -smallest(-age_E, ordered_E)
    position = smallest(position_E.astype(float), anything).astype(np.int64)
    order_position = smallest(position_E.astype(float), ordered_E)
    orders_since = np.where(has_order, np.where(has_order, order_position, 1) - 1, 0).astype(np.int64)
    done = {action: total((events.action_E == action).astype(float)) > 0 for action in Action}
    actions = sum(seen.astype(np.int64) << (int(action) - 1) for action, seen in done.items())
    decayed = np.stack([total(ordered_E * np.exp(-age_E / days)) for days in DECAY_DAYS], axis=1)
    weight_E = ordered_E * np.exp(-age_E / ORDER_DECAY_DAYS) * np.power(ORDER_DECAY, np.maximum(position_E - 1, 0))
    habit = total(weight_E)
    orders_G = _sum_of_orders(events.row_E, order_of_E, weight_E, len(now_ms_B))[events.row_E[first]]
    interest = total(~ordered_E * np.exp(-age_E / 2.0))
    return _Groups(
        row_G=events.row_E[first],
        item_G=events.item_E[first],
        position_G=np.minimum(position, NUM_POSITIONS - 1),
        actions_G=np.asarray(actions, np.int64),
        num_orders_G=num_orders,
        num_other_G=total((~ordered_E).astype(float)).astype(np.int64),
        first_order_age_G=np.where(has_order, first_age, 0.0),
        last_order_age_G=np.where(has_order, last_age, 0.0),
        last_event_age_G=smallest(age_E, anything),
        orders_since_last_G=orders_since,
        decayed_GD=decayed,
        decayed_share_G=np.minimum(np.divide(habit, orders_G, out=np.zeros(num_groups), where=orders_G > 0), 1.0),
        importance_G=np.round(habit + interest, 9),
    )


def _rank_in_row(row_G: Int64, *keys: NDArray[np.float64] | Int64) -> Int64:
    """0, 1, 2, … within each row, by ascending keys, the first the most significant."""
    sequence = np.lexsort((*reversed(keys), row_G))
    sorted_row = row_G[sequence]
    start = np.searchsorted(sorted_row, sorted_row)
    rank = np.empty(len(row_G), np.int64)
    rank[sequence] = np.arange(len(row_G)) - start
    return rank


def _store_clock(now_ms_B: Int64, store_timezone: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hour of the day and day of the week (0 = Monday, fractions are hours) on the store's own clock."""
    zone = ZoneInfo(store_timezone)
    local = [datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone) for ms in now_ms_B.tolist()]
    offset_s = [(moment.utcoffset() or timedelta()).total_seconds() for moment in local]
    local_days = (now_ms_B / 1000 + np.asarray(offset_s)) / 86_400
    hour = (local_days - np.floor(local_days)) * 24
    return hour.astype(np.float64), np.mod(local_days + 3, 7)  # 1 January 1970 was a Thursday
