"""LightGCN (He et al. 2020, arXiv:2002.02126) of torch_geometric: trains.

python benchmarks/quality/lightgcn_pyg.py train FOLDER       recipe.json, log.npz → vectors.npz, training.json

Runs in an environment of its own, so it knows nothing of the project but the arrays that lightgcn.py writes. Every twentieth of
the training is a line of JSON on stdout.
"""

# U = users, N = items, E = edges, B = edges of a step, D = size of a vector, J = layers and the input

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.nn import LightGCN
from torch_geometric.nn.models.lightgcn import BPRLoss

REPORTS = 20


def train(folder: Path) -> None:
    """Train, and write the vectors of every layer."""
    recipe, log = json.loads((folder / "recipe.json").read_text()), np.load(folder / "log.npz")
    seed_everything(recipe["seed"])
    started, losses = time.perf_counter(), []
    num_users, num_items = len(log["user_U"]), len(log["item_degree_N"])
    graph = adjacency(log, num_users, num_items)
    model = LightGCN(num_users + num_items, recipe["width"], recipe["num_layers"], normalize=False)
    torch.nn.init.normal_(model.embedding.weight, std=0.1)
    optimiser = torch.optim.Adam(model.parameters(), recipe["learning_rate"])
    user_E, item_E = torch.from_numpy(log["user_E"]), torch.from_numpy(log["item_E"])
    every = max(recipe["steps"] // REPORTS, 1)
    for step in range(1, recipe["steps"] + 1):
        for group in optimiser.param_groups:  # linear decay, to a tenth
            group["lr"] = recipe["learning_rate"] * (1 - 0.9 * step / recipe["steps"])
        chosen_B = torch.randint(len(user_E), (recipe["batch_size"],))
        loss = step_loss(model, graph, user_E[chosen_B], item_E[chosen_B], num_users, recipe)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if step % every == 0:
            mean = float(np.mean(losses[-every:]))
            print(json.dumps({"epoch": step, "max_epochs": recipe["steps"], "score": mean}), flush=True)
    layers = all_layers(model, graph)
    np.savez(
        folder / "vectors.npz",
        allow_pickle=False,
        user_UD=layers[0][:num_users],
        item_JND=np.stack([layer[num_users:] for layer in layers]),
    )
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}
    facts = {**seconds, "best_epoch": recipe["steps"], "scores": losses[::every]}
    (folder / "training.json").write_text(json.dumps(facts) + "\n")


def adjacency(log: Mapping[str, NDArray[Any]], num_users: int, num_items: int) -> Tensor:
    """Return the symmetric graph of users and items, in rows."""
    user_E, item_E = torch.from_numpy(log["user_E"]), torch.from_numpy(log["item_E"]) + num_users
    weight_E = torch.from_numpy(log["weight_E"])
    both = torch.cat([torch.stack([user_E, item_E]), torch.stack([item_E, user_E])], dim=1)
    size = num_users + num_items
    return torch.sparse_coo_tensor(both, torch.cat([weight_E, weight_E]), (size, size)).coalesce().to_sparse_csr()


def step_loss(
    model: LightGCN, graph: Tensor, user_B: Tensor, item_B: Tensor, num_users: int, recipe: Mapping[str, Any]
) -> Tensor:
    """Return the loss of some edges, and the penalty of their nodes' input vectors."""
    vectors = model.get_embedding(graph)
    user_BD, item_ND = vectors[user_B], vectors[num_users:]
    nodes = torch.cat([user_B, item_B + num_users])
    penalty: Tensor = recipe["regularisation"] * model.embedding.weight[nodes].square().sum() / len(user_B)
    if recipe["loss"] == "softmax":
        return torch.nn.functional.cross_entropy(user_BD @ item_ND.T / recipe["temperature"], item_B) + penalty
    negative_BD = item_ND[torch.randint(len(item_ND), item_B.shape)]
    positive_B, negative_B = (user_BD * item_ND[item_B]).sum(1), (user_BD * negative_BD).sum(1)
    ranked: Tensor = BPRLoss()(positive_B, negative_B)
    return ranked + penalty


@torch.no_grad()
def all_layers(model: LightGCN, graph: Tensor) -> list[NDArray[np.float32]]:
    """Return the input vectors and those of each layer."""
    layers = [model.embedding.weight]
    for convolution in model.convs:
        layers.append(convolution(layers[-1], graph))
    return [layer.numpy() for layer in layers]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of torch, about sparse matrices being new
    command, place = sys.argv[1:]
    {"train": train}[command](Path(place))
