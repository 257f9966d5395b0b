"""From an item's text embedding to codes, by residual quantisation.

RQ-VAE (Lee et al. 2022, arXiv:2203.01941; Rajput et al. 2023, arXiv:2305.05065) learns an encoder and the codebooks, with a
category head as a regulariser, so that the codes follow the shop's own shelves. Codebooks start as residual k-means of the
latents. A code that no item uses is moved onto a random residual, except in the last phase, when what was learned must settle.

RQ-KMeans is the same without training: principal components of the texts, and residual k-means of them (encoder="pca",
epochs=0). This module knows embeddings and category labels, no catalogue and no model.
"""

# N = items, T = text dim, Z = latent dim, L = content levels (no suffix), K = codebook size, G = items of one group

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from baguni.domain.errors import InvalidInputError


@dataclass(frozen=True)
class RqVaeRecipe:
    """Sizes and schedule. Codes are reset until `reset_share` of the epochs have passed.

    encoder: "mlp", or "pca": a linear layer that starts as the principal components of the texts
    distinct: whether items with different texts are given different codes as far as there are any, see `content_codes`
    """

    encoder: Literal["mlp", "pca"] = "mlp"
    distinct: bool = False
    latent_dim: int = 64
    hidden: tuple[int, ...] = (256, 128)
    num_levels: int = 3
    codebook_size: int = 256
    epochs: int = 120
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    commitment: float = 0.25
    category_weight: float = 0.2
    reset_every: int = 10
    reset_share: float = 0.7


class RqVae(nn.Module):
    """Encoder, residual quantiser, decoder, category head. Embeddings are standardised per dimension on the way in: on
    raw unit-length ones the codebooks collapse."""

    mean_T: Tensor
    std_T: Tensor

    def __init__(self, text_dim: int, num_categories: int, recipe: RqVaeRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        widths = (text_dim, *recipe.hidden, recipe.latent_dim)
        if recipe.encoder == "pca":
            widths = (text_dim, recipe.latent_dim)
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.category_head = nn.Linear(recipe.latent_dim, num_categories)
        self.codebooks_LKZ = nn.Parameter(torch.randn(recipe.num_levels, recipe.codebook_size, recipe.latent_dim) * 0.1)
        self.register_buffer("mean_T", torch.zeros(text_dim))
        self.register_buffer("std_T", torch.ones(text_dim))

    def standardise(self, text_NT: Tensor) -> Tensor:
        """Zero mean and unit variance per dimension, by the statistics of the fitted catalogue."""
        return (text_NT - self.mean_T) / self.std_T

    def quantise(self, latent_NZ: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [N, L] by nearest residual, level by level, and their sum [N, Z]."""
        residual, chosen, codes = latent_NZ, torch.zeros_like(latent_NZ), []
        for codebook_KZ in self.codebooks_LKZ:
            squared = (codebook_KZ**2).sum(-1)
            code_N = (squared - 2 * residual @ codebook_KZ.T).argmin(-1)
            codes.append(code_N)
            chosen = chosen + codebook_KZ[code_N]
            residual = residual - codebook_KZ[code_N]
        return torch.stack(codes, dim=1), chosen

    def forward(self, text_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [N, L] and content vectors [N, Z] of unit length."""
        latent_NZ = self.encoder(self.standardise(text_NT))
        codes_NL, _ = self.quantise(latent_NZ)
        return codes_NL, F.normalize(latent_NZ, dim=-1)

    def loss(self, text_NT: Tensor, category_N: Tensor) -> Tensor:
        """Reconstruction + codebook + commitment + category cross-entropy, each a mean over items."""
        target = self.standardise(text_NT)
        latent = self.encoder(target)
        _, chosen = self.quantise(latent)
        straight_through = latent + (chosen - latent).detach()
        reconstruction = F.mse_loss(self.decoder(straight_through), target)
        codebook = F.mse_loss(chosen, latent.detach()) + self.recipe.commitment * F.mse_loss(latent, chosen.detach())
        category = F.cross_entropy(self.category_head(straight_through), category_N)
        return reconstruction + codebook + self.recipe.category_weight * category

    @torch.no_grad()
    def initialise(self, text_NT: Tensor, seed: int) -> None:
        """Statistics of the catalogue, then codebooks as residual k-means of the latents."""
        from sklearn.cluster import KMeans  # seconds to import, and only a training needs it

        self.mean_T.copy_(text_NT.mean(0))
        self.std_T.copy_(text_NT.std(0, unbiased=False).clamp(min=1e-6))
        standardised = self.standardise(text_NT)
        if self.recipe.encoder == "pca":
            _, _, components = torch.linalg.svd(standardised, full_matrices=False)
            (linear,) = [module for module in self.encoder if isinstance(module, nn.Linear)]
            linear.bias.zero_()
            linear.weight.zero_()  # of components that a small catalogue does not have
            linear.weight[: len(components)] = components[: len(linear.weight)]
        residual = self.encoder(standardised)
        for level in range(self.recipe.num_levels):
            num_clusters = min(self.recipe.codebook_size, len(np.unique(residual.numpy().round(6), axis=0)))
            kmeans = KMeans(num_clusters, n_init=1, max_iter=30, random_state=seed).fit(residual.numpy())
            centres = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
            self.codebooks_LKZ[level, :num_clusters] = centres
            residual = residual - centres[torch.from_numpy(kmeans.labels_).long()]

    @torch.no_grad()
    def reset_dead_codes(self, text_NT: Tensor, generator: torch.Generator) -> int:
        """Move each unused code onto a random residual of its level; returns how many were moved."""
        residual, moved = self.encoder(self.standardise(text_NT)), 0
        codes_NL, _ = self.quantise(residual)
        for level, codebook_KZ in enumerate(self.codebooks_LKZ):
            dead = torch.bincount(codes_NL[:, level], minlength=len(codebook_KZ)) == 0
            pick = torch.randint(len(residual), (int(dead.sum()),), generator=generator)
            moved += int(dead.sum())
            step = codebook_KZ[codes_NL[:, level]].clone()
            codebook_KZ[dead] = residual[pick]
            residual = residual - step
        return moved


@torch.no_grad()
def content_codes(model: RqVae, text_NT: Tensor, known_NL: Tensor | None = None) -> Tensor:
    """Return the codes [N, L] of a catalogue. `known_NL`: codes that are published already, which stay; -1 for new items.

    If the recipe wants distinct codes and different texts have the same ones, their codes of the last level differ: each group
    of texts that share the levels before is assigned to codes of the last level that no known item of the group has, each to
    one of its own, so that the sum of squared distances is least. A text that a known item of the group has keeps that item's
    code. If a group has more texts than there are codes, the new ones keep their nearest.
    """
    codes_NL, _ = model(text_NT)
    is_known_N = torch.zeros(len(text_NT), dtype=torch.bool)
    if known_NL is not None:
        is_known_N = known_NL[:, 0] >= 0
        codes_NL = torch.where(is_known_N[:, None], known_NL, codes_NL)
    return _distinct(model, text_NT, codes_NL, is_known_N.numpy()) if model.recipe.distinct else codes_NL


def _distinct(model: RqVae, text_NT: Tensor, codes_NL: Tensor, is_known_N: NDArray[np.bool_]) -> Tensor:
    latent_NZ = model.encoder(model.standardise(text_NT))
    for level, codebook_KZ in enumerate(model.codebooks_LKZ[:-1]):
        latent_NZ = latent_NZ - codebook_KZ[codes_NL[:, level]]
    last_KZ = model.codebooks_LKZ[-1]
    _, text_N = np.unique(text_NT.numpy(), axis=0, return_inverse=True)
    _, group_N = np.unique(codes_NL[:, :-1].numpy(), axis=0, return_inverse=True)
    last_N = codes_NL[:, -1].numpy()  # the same memory
    for members in np.split(np.argsort(group_N, kind="stable"), np.cumsum(np.bincount(group_N))[:-1]):
        known, new = members[is_known_N[members]], members[~is_known_N[members]]
        known_texts, first_known = np.unique(text_N[known], return_index=True)
        new_texts, first_new, text_new = np.unique(text_N[new], return_index=True, return_inverse=True)
        code_of_text = last_N[new[first_new]]
        is_seen = np.isin(new_texts, known_texts)
        code_of_text[is_seen] = last_N[known[first_known]][np.searchsorted(known_texts, new_texts[is_seen])]
        free = np.setdiff1d(np.arange(len(last_KZ)), last_N[known])
        unseen = new[first_new[~is_seen]]
        if 0 < len(unseen) <= len(free):
            distance = torch.cdist(latent_NZ[unseen], last_KZ[free]).square().numpy()
            code_of_text[~is_seen] = free[linear_sum_assignment(distance)[1]]
        last_N[new] = code_of_text[text_new]
    return codes_NL


def fit_rqvae(
    text_NT: NDArray[np.float32],
    category_N: NDArray[np.int64],
    recipe: RqVaeRecipe,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> RqVae:
    """Fit to a catalogue's embeddings and category labels; `on_epoch(epoch, mean loss)` is called after each epoch."""
    if len(text_NT) != len(category_N) or len(text_NT) == 0:
        raise InvalidInputError(
            f"{len(text_NT)} embeddings and {len(category_N)} categories, expected as many, at least 1"
        )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    text, category = torch.from_numpy(text_NT), torch.from_numpy(category_N)
    model = RqVae(text_NT.shape[1], int(category_N.max()) + 1, recipe)
    model.initialise(text, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        losses = []
        for rows in torch.randperm(len(text), generator=generator).split(recipe.batch_size):
            loss = model.loss(text[rows], category[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if epoch % recipe.reset_every == recipe.reset_every - 1 and epoch < recipe.reset_share * recipe.epochs:
            model.reset_dead_codes(text, generator)
        on_epoch(epoch, float(np.mean(losses)))
    return model.eval()


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
