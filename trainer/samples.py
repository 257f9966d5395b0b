"""Training samples: every (user, order) prefix of the log, as batches of tensors.

The target of a sample is a whole order; its history is what the user did strictly before. Nothing at or after the order
can reach the inputs. Batches depend only on (seed, step), so a resumed run sees the same ones. No loop over users.
"""

# B = batch, S = tokens, E = events of the batch, P = all target lines of the batch, Q = sampled targets per user

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baguni.domain.history import MAX_EVENTS, Action
from baguni.domain.semantic_ids import SemanticIdTable
from baguni.domain.sequences import (
    EventBatch,
    ModelInputs,
    first_tokens,
    line_inputs,
    longest,
    model_inputs,
    sequence_arrays,
)
from trainer.data.dataset import Dataset, expand
from trainer.model import Sequences
from trainer.statistics import ItemStatistics

Int64 = NDArray[np.int64]
HOUR_MS = 3_600_000
BATCHES_PER_GROUP = 20


class Batch(NamedTuple):
    """sequences: what the models read; the month of each row, ascending, for its item statistics; target lines (row_P, item_P);
    `owned_*`: every (row, item) ordered before."""

    sequences: Sequences
    month_B: Tensor
    target_row_P: Tensor
    target_item_P: Tensor
    owned_row: Tensor
    owned_item: Tensor

    @property
    def size(self) -> int:
        """Number of users."""
        return len(self.sequences.item_BS)


class Shelves(NamedTuple):
    """Which items stand beside each other: category_N of each item, item_N by category, and where each category starts."""

    category_N: Tensor
    item_N: Tensor
    start_C: Tensor

    @classmethod
    def of(cls, categories: NDArray[np.str_]) -> Shelves:
        """From each item's category path."""
        _, category_N, count_C = np.unique(categories, return_inverse=True, return_counts=True)
        start_C = np.r_[0, np.cumsum(count_C)]
        parts = (category_N, np.argsort(category_N, kind="stable"), start_C)
        return cls(*(torch.from_numpy(part) for part in parts))

    def same_category(self, item: Tensor, generator: torch.Generator) -> Tensor:
        """A random item of each item's category, any shape: a hard negative."""
        category = self.category_N[item]
        start, stop = self.start_C[category], self.start_C[category + 1]
        chance = torch.rand(item.shape, generator=generator, device=item.device)
        return self.item_N[start + (chance * (stop - start)).long()]

    def mean_of_category(self, value_N: Tensor) -> Tensor:
        """Return [N], the mean of a value over the items of each item's category."""
        size_C = self.start_C.diff()
        sum_C = torch.zeros(len(size_C), device=value_N.device).index_add_(0, self.category_N, value_N)
        return (sum_C / size_C)[self.category_N]


class OrderSamples:
    """All orders of a data set, each with the user's history before it."""

    def __init__(
        self,
        dataset: Dataset,
        table: SemanticIdTable,
        statistics: ItemStatistics,
        max_tokens: int,
        click_rate: float = 0.0,
        seed: int = 0,
        tokens: Literal["items", "lines"] = "items",
    ) -> None:
        self.inputs_of = model_inputs if tokens == "items" else line_inputs
        self.dataset, self.max_tokens, self.click_rate, self.seed = dataset, max_tokens, click_rate, seed
        self.statistics = statistics
        self._codes_NL = table.codes_NL
        orders = dataset.orders()
        self.user_O, self.time_O = orders.user_O, orders.time_O
        self._first_O, self._last_O, self._line_item = orders.first_O, orders.last_O, orders.item_P
        user_start = np.searchsorted(dataset.user_E, np.arange(len(dataset.user_ids) + 1))
        self._user_time = _UserTime(dataset.user_E, dataset.time_E)
        self._num_events_O = self._user_time.position(self.user_O, self.time_O) - user_start[self.user_O]
        self._order: tuple[tuple[int, int], Int64] | None = None  # the epoch's, made once for all its steps
        self.shelves = Shelves.of(dataset.catalog.categories)

    def __len__(self) -> int:
        return len(self.user_O)

    def sample_order(self, epoch: int, batch_size: int) -> Int64:
        """The order in which an epoch visits the samples: batches of histories of about one length, in random order, so that
        short ones are not padded to long ones. The last incomplete batch is a random one."""
        asked = (epoch, batch_size)
        if self._order is None or self._order[0] != asked:
            self._order = (asked, self._shuffled(epoch, batch_size))
        return self._order[1]

    def _shuffled(self, epoch: int, batch_size: int) -> Int64:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self))
        whole = len(self) // batch_size * batch_size
        groups = np.arange(whole) // (batch_size * BATCHES_PER_GROUP)
        by_length = order[np.lexsort((self._num_events_O[order[:whole]], groups))].reshape(-1, batch_size)
        return np.r_[rng.permutation(by_length).ravel(), order[whole:]]

    def batch(self, samples: Int64, step: int | None = None) -> Batch:
        """The batch of these samples. With a `step`, some get clicks (see `_clicks`); without, none do."""
        user_B, now_B = self.user_O[samples], self.time_O[samples]
        events = self.history_events(user_B, now_B)
        row_P, line_P = expand(self._first_O[samples], self._last_O[samples])
        item_P = self._line_item[line_P]
        ordered = events.action_E == Action.ORDERED
        owned_row, owned_item = events.row_E[ordered], events.item_E[ordered]
        if step is not None and self.click_rate > 0:
            events = self._clicks(events, now_B, row_P, item_P, np.random.default_rng([self.seed, 1, step]))
        inputs = trimmed(self.inputs_of(events, now_B, self.max_tokens, self.dataset.store_timezone))
        month_B = self.statistics.month(now_B)
        return Batch(
            to_sequences(inputs, self._codes_NL, self.statistics.values_TNP, month_B),
            torch.from_numpy(month_B),
            *(torch.from_numpy(np.ascontiguousarray(column)) for column in (row_P, item_P, owned_row, owned_item)),
        )

    def history_events(self, user_B: Int64, now_B: Int64) -> EventBatch:
        """The newest MAX_EVENTS events of each user strictly before `now_B`."""
        stop_B = self._user_time.position(user_B, now_B)
        start_B = np.searchsorted(self.dataset.user_E, user_B)
        row_E, index_E = expand(np.maximum(start_B, stop_B - MAX_EVENTS), stop_B)
        data = self.dataset
        return EventBatch(
            row_E,
            data.item_E[index_E],
            data.action_E[index_E],
            _per_row(row_E, data.order_E[index_E]),
            data.time_E[index_E],
        )

    def _clicks(
        self, events: EventBatch, now_B: Int64, row_P: Int64, item_P: Int64, rng: np.random.Generator
    ) -> EventBatch:
        """Give `click_rate` of the users a session: clicks within the two hours before the order.

        A log without clicks teaches nothing about them, so they are made from the order itself: half of the clicked
        items are in the order, half are others of the same category. `docs/data-format.md` says so.
        """
        chosen_B = rng.random(len(now_B)) < self.click_rate
        clicked = chosen_B[row_P] & (rng.random(len(row_P)) < 0.3)
        row, item = row_P[clicked], item_P[clicked]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        similar = self.shelves.same_category(torch.from_numpy(item), generator).numpy()
        item = np.where(rng.random(len(item)) < 0.5, item, similar)
        time = now_B[row] - 1 - (rng.random(len(row)) * 2 * HOUR_MS).astype(np.int64)
        row_E = np.r_[events.row_E, row]
        sort = np.argsort(row_E, kind="stable")
        none = np.full(len(row), -1, np.int64)
        action = np.full(len(row), int(Action.CLICKED), np.int64)
        return EventBatch(
            row_E[sort],
            np.r_[events.item_E, item][sort],
            np.r_[events.action_E, action][sort],
            np.r_[events.order_E, none][sort],
            np.r_[events.time_E, time][sort],
        )


def trimmed(inputs: ModelInputs) -> ModelInputs:
    """Return the inputs without columns that have no token: short histories do not pay for long ones."""
    return first_tokens(inputs, max(longest(inputs), 1))


def to_sequences(
    inputs: ModelInputs, codes_NL: NDArray[np.int32], statistics_TNP: NDArray[np.float32], month_B: Int64
) -> Sequences:
    """Return the models' tensors of some histories: what is served, and the items' statistics."""
    known_BS1 = inputs.item_BS[:, :, None] >= 0
    statistics_BSP = statistics_TNP[month_B[:, None], inputs.item_BS] * known_BS1
    arrays = [*sequence_arrays(inputs, codes_NL).values(), statistics_BSP]
    return Sequences(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def sample_targets(
    batch: Batch, item_weight_N: Tensor, num_targets: int, generator: torch.Generator, novel_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw up to `num_targets` items of each user's order with probability ∝ `item_weight_N` (1/√frequency gives rare items of
    an order a chance beside its staples). Return item_BQ (0 where absent) and present_BQ.

    `novel_share` of them are drawn from the items that the user never bought before, the others from the whole order; within
    each part, items are different.
    """
    num_novel = round(num_targets * novel_share)
    whole = _drawn(
        batch.target_row_P, batch.target_item_P, batch.size, item_weight_N, num_targets - num_novel, generator
    )
    if num_novel == 0:
        return whole
    width = len(item_weight_N)
    owned = torch.isin(batch.target_row_P * width + batch.target_item_P, batch.owned_row * width + batch.owned_item)
    row_P, item_P = batch.target_row_P[~owned], batch.target_item_P[~owned]
    novel = _drawn(row_P, item_P, batch.size, item_weight_N, num_novel, generator)
    return torch.cat([whole[0], novel[0]], dim=1), torch.cat([whole[1], novel[1]], dim=1)


def _drawn(
    row_P: Tensor, item_P: Tensor, size: int, item_weight_N: Tensor, num_targets: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw different items for each row: the smallest of exponential times with these rates are a weighted sample without
    replacement."""
    rate_P = item_weight_N[item_P].clamp(min=1e-12)
    arrival_P = torch.empty_like(rate_P).exponential_(generator=generator) / rate_P
    order = arrival_P.argsort()
    order = order[row_P[order].argsort(stable=True)]
    row, item = row_P[order], item_P[order]
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    keep = rank < num_targets
    item_BQ = row.new_zeros(size, num_targets)
    present_BQ = torch.zeros_like(item_BQ, dtype=torch.bool)
    item_BQ[row[keep], rank[keep]] = item[keep]
    present_BQ[row[keep], rank[keep]] = True
    return item_BQ, present_BQ


class _UserTime:
    """Finds where in (user, time)-sorted events a user's time stands, without a loop: one search over combined keys."""

    def __init__(self, user_E: Int64, time_E: Int64) -> None:
        self._origin = int(time_E.min(initial=0))
        self._span = int(time_E.max(initial=0)) - self._origin + 2
        self._key_E = user_E * self._span + (time_E - self._origin)

    def position(self, user_B: Int64, time_B: Int64) -> Int64:
        offset = np.clip(time_B - self._origin, 0, self._span - 1)
        return np.searchsorted(self._key_E, user_B * self._span + offset)


def _per_row(row_E: Int64, order_E: Int64) -> Int64:
    """Order numbers that differ between rows, as one user may stand in several rows of a batch."""
    width = int(order_E.max(initial=0)) + 1
    return np.where(order_E >= 0, row_E * width + order_E, -1)
