"""SASRec (Kang and McAuley 2018, arXiv:1808.09781) with a softmax loss, as `rectools` builds it: trains, and ranks.

python benchmarks/quality/sasrec_rectools.py train FOLDER       recipe.json, log.npz → model.pt, training.json
python benchmarks/quality/sasrec_rectools.py rank FOLDER        recipe.json, model.pt, queries.npz → lists.npz

Runs in an environment of its own (requirements-peers.lock: rectools wants numpy 1), so it knows nothing of the project but
the arrays that sasrec.py writes. Every epoch is a line of JSON on stdout.

The loss is that of rectools, taken at real places only: where 8 items are padded to 50, that is 6 times faster.
"""

# B = batch, S = places of a sequence, T = real places of a batch, C = negatives or candidates
# D = size of a vector, P = lines of all sequences, Q = queries, N = items, V = tokens of the model: 0 = padding, then items

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from torch import Tensor

Int64 = NDArray[np.int64]
K = 10
RANK_BATCH = 256


class SoftmaxAtRealPlaces(TransformerLightningModule):
    """Next-item softmax over all items, or over the target and `num_negatives` items drawn for each place, or once for all
    places of the batch (`shared_negatives`, which for long sequences is 10 times faster)."""

    def __init__(self, num_negatives: int | None, shared_negatives: bool, order_end: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_negatives, self.shared_negatives = num_negatives, shared_negatives
        self.no_targets = torch.from_numpy(np.r_[0, tokens_of(self.data_preparator, order_end)])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the places that have a target; the end of an order is none."""
        real_BS = ~torch.isin(batch["y"], self.no_targets)
        item_VD = self.torch_model.item_model.get_all_embeddings()
        place_TD = self.torch_model.encode_sessions(batch, item_VD)[real_BS]
        target_T = batch["y"][real_BS]
        if self.num_negatives is None:
            return torch.nn.functional.cross_entropy(place_TD @ item_VD[1:].T, target_T - 1)
        target_T1 = (place_TD * item_VD[target_T]).sum(dim=1, keepdim=True)
        if self.shared_negatives:
            negative_C = torch.randint(1, len(item_VD), (self.num_negatives,))
            negative_TC = place_TD @ item_VD[negative_C].T
        else:
            drawn_TC = torch.randint(1, len(item_VD), (len(target_T), self.num_negatives))
            negative_TC = torch.bmm(item_VD[drawn_TC], place_TD[:, :, None])[:, :, 0]
        logits_TC = torch.cat([target_T1, negative_TC], dim=1)
        return torch.nn.functional.cross_entropy(logits_TC, torch.zeros_like(target_T))


def train(folder: Path) -> None:
    """Train until the validation score has not risen for `patience` epochs and keep the best epoch's model; without
    `patience`, train `max_epochs` epochs and keep the last one's."""
    recipe, log = json.loads((folder / "recipe.json").read_text()), np.load(folder / "log.npz")
    seed_everything(recipe["seed"])
    started, scores, best_epoch = time.perf_counter(), [0.0], 0
    model = sasrec(recipe, order_end=len(log["count_N"]))
    sequences = interactions(log["sequence_P"], log["item_P"])
    for epoch in range(1, recipe["max_epochs"] + 1):
        model.fit_partial(sequences, min_epochs=1, max_epochs=1)
        scores.append(validation_ndcg(model, log, recipe["seed"]) if recipe["patience"] else float(epoch))
        print(json.dumps({"epoch": epoch, "max_epochs": recipe["max_epochs"], "score": scores[-1]}), flush=True)
        if scores[-1] > scores[best_epoch]:
            best_epoch = epoch
            torch.save({"network": model.torch_model, "item_V": items_by_token(model)}, folder / "model.pt")
        elif epoch - best_epoch >= recipe["patience"]:
            break
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}
    facts = {**seconds, "best_epoch": best_epoch, "scores": scores[1:]}
    (folder / "training.json").write_text(json.dumps(facts) + "\n")


def rank(folder: Path) -> None:
    """Lists among all items, and among those that were not bought."""
    recipe, asked = json.loads((folder / "recipe.json").read_text()), np.load(folder / "queries.npz")
    saved = torch.load(folder / "model.pt", weights_only=False)  # our own file
    found = {
        name: lists(saved["network"], saved["item_V"], asked, name == "novel", recipe["seed"])
        for name in ("all", "novel")
    }
    np.savez(folder / "lists.npz", allow_pickle=False, **found)


def sasrec(recipe: Mapping[str, Any], order_end: int) -> SASRecModel:
    """The model; it is built when it first sees its items. `order_end`: the number that stands for the end of an order."""
    loss = {name: recipe[name] for name in ("num_negatives", "shared_negatives")}
    return SASRecModel(
        n_factors=recipe["width"],
        n_blocks=recipe["num_blocks"],
        n_heads=recipe["num_heads"],
        dropout_rate=recipe["dropout"],
        session_max_len=recipe["max_length"],
        lr=recipe["learning_rate"],
        batch_size=recipe["batch_size"],
        loss="softmax",
        lightning_module_type=SoftmaxAtRealPlaces,
        lightning_module_kwargs={**loss, "order_end": order_end},
    )


def interactions(sequence_P: Int64, item_P: Int64) -> Dataset:
    """The sequences, oldest line first, as rectools takes them."""
    time_P = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(item_P)), unit="s")
    columns = {Columns.User: sequence_P, Columns.Item: item_P, Columns.Weight: 1.0, Columns.Datetime: time_P}
    return Dataset.construct(pd.DataFrame(columns))


def items_by_token(model: SASRecModel) -> Int64:
    """The item index of each token after padding."""
    return np.asarray(model.data_preparator.get_known_item_ids(), np.int64)


def tokens_of(preparator: Any, item: int) -> Int64:
    """The token of an item; none if no sequence has it."""
    return np.flatnonzero(preparator.item_id_map.get_external_sorted_by_internal() == item)


def validation_ndcg(model: SASRecModel, log: Mapping[str, NDArray[Any]], seed: int) -> float:
    """Mean NDCG@10 of the one item that was left out, among those not in the sequence."""
    top_Qk = lists(model.torch_model, items_by_token(model), log, True, seed)
    _, place = np.nonzero(top_Qk == log["target_Q"][:, None])
    return float((1 / np.log2(place + 2)).sum() / len(top_Qk))


@torch.no_grad()
def lists(network: Any, item_V: Int64, asked: Mapping[str, NDArray[Any]], novel: bool, seed: int) -> Int64:
    """The best K items for each of `item_QS`, [Q, K]; `novel`: without (bought_row_P, bought_item_P).

    A sequence without any item that the model knows gets the most popular ones (count_N). Items that the model does not
    know are never recommended, nor is N, which stands for the end of an order.
    """
    item_QS, row_P, bought_P, count_N = (
        asked[name] for name in ("item_QS", "bought_row_P", "bought_item_P", "count_N")
    )
    token_N = np.zeros(
        len(count_N) + 2, np.int64
    )  # N is the end of an order; the last, which -1 finds, stays 0: padding
    token_N[item_V] = np.arange(1, len(item_V) + 1)
    popularity_V = torch.from_numpy(np.append(count_N, 0)[item_V]).float()
    shuffled_V = np.random.default_rng(seed).permutation(len(item_V))  # no tie is broken by number
    network.eval()
    item_VD, tops = network.item_model.get_all_embeddings(), []
    for start in range(0, len(item_QS), RANK_BATCH):
        token_BS = torch.from_numpy(token_N[item_QS[start : start + RANK_BATCH]])
        score_BV = network.encode_sessions({"x": token_BS}, item_VD)[:, -1] @ item_VD[1:].T
        score_BV[(token_BS == 0).all(dim=1)] = popularity_V
        score_BV[:, item_V == len(count_N)] = -torch.inf
        if novel:
            low, high = np.searchsorted(row_P, [start, start + RANK_BATCH])
            row, token = row_P[low:high] - start, token_N[bought_P[low:high]]
            score_BV[row[token > 0], token[token > 0] - 1] = -torch.inf
        best = score_BV[:, shuffled_V].topk(min(K, len(item_V)), dim=1)
        top = np.where(best.values.isneginf().numpy(), -1, item_V[shuffled_V[best.indices.numpy()]])
        tops.append(np.pad(top, ((0, 0), (0, K - top.shape[1])), constant_values=-1))
    network.train()
    return np.concatenate(tops)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of lightning, about loaders and loggers that are meant to be so
    command, place = sys.argv[1:]
    {"train": train, "rank": rank}[command](Path(place))
