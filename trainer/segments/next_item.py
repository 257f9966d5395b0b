"""What the generative head says of whole segments: how likely each item and each category is to be bought next.

The head gives every Semantic ID a likelihood. Here it is computed for the whole catalogue at once: a prefix that many items
share is decoded once, so a user costs one decoder state per inner node of the trie, not one per code of every item.

`p(item | user, now)` is the chance that a line of the user's next order, taken at random, is the item, given that the order
is made now: that is what the head is trained on. It knows the model and the catalogue, not how its answers are judged.
"""

# B = batch of users, N = items, L = code levels, K = codebook size, W = trie nodes of one level, S = history tokens, D = width,
# C = categories of any depth, X = components of an item vector

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baguni.domain.catalog import CATEGORY_SEPARATOR, Catalog
from baguni.domain.errors import NotFoundError
from baguni.domain.semantic_ids import SemanticIdTable
from trainer.model import DualHeadModel, Memory
from trainer.run import Progress, Run, silent
from trainer.samples import to_sequences, trimmed

NODES_AT_ONCE = 512  # with USERS_AT_ONCE, some 100 MB of decoder states and attention weights
USERS_AT_ONCE = 16
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixLevel:
    """The trie's nodes at one depth and their children, which are sorted by node.

    prefix_W:    codes of each node, [W, depth]
    node:        each child's place among the nodes, ascending
    code:        each child's code
    """

    prefix_W: Tensor
    node: Tensor
    code: Tensor


@dataclass(frozen=True)
class PrefixTree:
    """The trie of a Semantic ID table, level by level. `leaf_N`: each item's place among the last level's children."""

    levels: tuple[PrefixLevel, ...]
    leaf_N: Tensor

    @classmethod
    def of(cls, table: SemanticIdTable) -> PrefixTree:
        """All prefixes of all IDs."""
        trie, levels, prefix_WL = table.trie, [], np.zeros((1, 0), np.int64)
        starts = trie.level_starts
        for start, stop, below in zip(starts[:-2], starts[1:-1], starts[2:], strict=True):
            node = np.repeat(np.arange(stop - start), np.diff(trie.first_child_M[start : stop + 1]))
            code = trie.code_V[stop:below].astype(np.int64)
            levels.append(PrefixLevel(*(torch.from_numpy(part) for part in (prefix_WL, node, code))))
            prefix_WL = np.c_[prefix_WL[node], code]
        return cls(tuple(levels), torch.from_numpy(np.argsort(trie.item_R)))


@torch.no_grad()
def item_log_likelihoods(
    model: DualHeadModel, memory: Memory, tree: PrefixTree, nodes_at_once: int = NODES_AT_ONCE
) -> Tensor:
    """[B, N] log-likelihood of every item's Semantic ID, in nats: what `DualHeadModel.log_likelihood` gives one by one.

    Memory grows with B · nodes_at_once, time with B · (inner nodes of the trie).
    """
    cross, first_B11D = model.cross_keys_values(memory), model.first_prefix(memory)
    score_BW = first_B11D.new_zeros(first_B11D.shape[:2])
    for depth, level in enumerate(tree.levels):
        scores = []
        for start in range(0, len(level.prefix_W), nodes_at_once):
            prefix_W = level.prefix_W[start : start + nodes_at_once]
            prefix_BWtD = first_B11D.expand(-1, len(prefix_W), -1, -1)
            for above in range(depth):
                prefix_BWtD = model.extended(prefix_BWtD, above, prefix_W[None, :, above])
            match_BWS = (memory.codes_BSL[:, None, :, :depth] == prefix_W[None, :, None, :]).all(-1)
            log_prob_BWK = model.next_code_log_prob(prefix_BWtD, depth, cross, memory, match_BWS)
            first, stop = torch.searchsorted(level.node, torch.tensor([start, start + len(prefix_W)])).tolist()
            node, code = level.node[first:stop], level.code[first:stop]
            scores.append(score_BW[:, node] + log_prob_BWK[:, node - start, code])
        score_BW = torch.cat(scores, dim=1)
    return score_BW[:, tree.leaf_N]


def item_probabilities(
    model: DualHeadModel, memory: Memory, tree: PrefixTree, nodes_at_once: int = NODES_AT_ONCE
) -> Tensor:
    """[B, N] probability of every item; a row sums to 1: what the head gives to IDs of no item is shared out in proportion."""
    return item_log_likelihoods(model, memory, tree, nodes_at_once).softmax(-1)


@dataclass(frozen=True)
class Categories:
    """Every category path of a catalogue and every path above one.

    paths:   "GROCERY", "GROCERY > BREAD", …, sorted by depth, then by name
    depth_C: 1 for a department
    item_ND: the category of each item at each depth, -1 where its own path is shorter
    """

    paths: tuple[str, ...]
    depth_C: Int64
    item_ND: Int64

    @classmethod
    def of(cls, catalog: Catalog) -> Categories:
        """The categories of a catalogue's items."""
        own = [item.category_path for item in catalog.items]
        found = {path[:depth] for path in set(own) for depth in range(1, len(path) + 1)}
        paths = sorted(found, key=lambda path: (len(path), path))
        place = {path: number for number, path in enumerate(paths)}
        depths = range(1, max(map(len, own), default=0) + 1)
        item = [[place[path[:depth]] if depth <= len(path) else -1 for depth in depths] for path in own]
        return cls(
            tuple(CATEGORY_SEPARATOR.join(path) for path in paths),
            np.asarray([len(path) for path in paths], np.int64),
            np.asarray(item, np.int64).reshape(len(own), len(depths)),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def index(self, path: str) -> int:
        """The category of that path. Raises NotFoundError, with the nearest paths there are."""
        if path in self.paths:
            return self.paths.index(path)
        lower = {known.lower(): known for known in self.paths}
        near = [lower[name] for name in get_close_matches(path.lower(), lower, n=3, cutoff=0.0)]
        raise NotFoundError(f"category {path!r} does not exist, expected a path such as {' or '.join(map(repr, near))}")

    def at_depth(self, depth: int) -> Int64:
        """The categories of one depth. Raises NotFoundError where the catalogue has none so deep."""
        found = np.flatnonzero(self.depth_C == depth)
        if len(found) == 0:
            raise NotFoundError(f"no category has depth {depth}, expected 1 to {int(self.depth_C.max(initial=0))}")
        return found


def category_probabilities(probability_BN: Tensor, categories: Categories) -> Tensor:
    """[B, C] sums of the items' probabilities, for categories of every depth: those below a path, and the items that stand
    on the path itself, add up to it."""
    sums_BC = probability_BN.new_zeros(len(probability_BN), len(categories) + 1)
    for item_N in torch.from_numpy(categories.item_ND).T:
        sums_BC.index_add_(1, torch.where(item_N < 0, len(categories), item_N), probability_BN)
    return sums_BC[:, :-1]


class NextItem:
    """p(item | user, now) of one model, for any user of the log and any time."""

    def __init__(self, run: Run, model: DualHeadModel, progress: Progress = silent) -> None:
        table = run.semantic_ids()
        self.dataset, self.orders = run.dataset, run.dataset.orders()
        self.categories = Categories.of(run.dataset.catalog)
        self.samples = run.samples(run.dataset)
        self._progress = progress
        self._model, self._tree, self._codes_NL = model.eval(), PrefixTree.of(table), table.codes_NL
        with torch.no_grad():
            self._vectors_NX = model.item_vectors(run.training_set.text_NT)

    def probabilities(self, user_B: Int64, known_B: Int64, now_B: Int64) -> Tensor:
        """[B, N] for orders at `now_B`, as foreseen at `known_B`: events and statistics are those before `known_B`."""
        events = self.samples.history_events(user_B, known_B)
        inputs = trimmed(self.samples.inputs_of(events, now_B, self.samples.max_tokens, self.dataset.store_timezone))
        statistics = self.samples.statistics
        sequences = to_sequences(inputs, self._codes_NL, statistics.values_TNP, statistics.month(known_B))
        with torch.no_grad():
            memory = self._model.encode(sequences, self._vectors_NX)
        return item_probabilities(self._model, memory, self._tree)

    def batches(
        self, user_B: Int64, known_B: Int64, now_B: Int64, stage: str = "forecast"
    ) -> Iterator[tuple[slice, Tensor]]:
        """The same for any number of users, USERS_AT_ONCE at a time: which of them, and their probabilities. `stage` names
        what is done to whoever watches."""
        for start in range(0, len(user_B), USERS_AT_ONCE):
            part = slice(start, start + USERS_AT_ONCE)
            yield part, self.probabilities(user_B[part], known_B[part], now_B[part])
            self._progress(stage, min(part.stop, len(user_B)), len(user_B), "histories")

    def category_probabilities(self, user_B: Int64, now_ms: int) -> NDArray[np.float32]:
        """[B, C] for orders made now."""
        now_B = np.full(len(user_B), now_ms, np.int64)
        found = [np.zeros((0, len(self.categories)), np.float32)]
        for _, probability_BN in self.batches(user_B, now_B, now_B):
            found.append(category_probabilities(probability_BN, self.categories).numpy())
        return np.concatenate(found)
