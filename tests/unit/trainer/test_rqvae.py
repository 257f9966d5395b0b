"""Semantic IDs from text: codebooks that are used, and codes that follow the text."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from baguni.domain.errors import InvalidInputError
from baguni.domain.semantic_ids import SemanticIdTable, unique_suffixes
from trainer.rqvae import RqVaeRecipe, content_codes, fit_rqvae

RECIPE = RqVaeRecipe(latent_dim=8, hidden=(32,), num_levels=2, codebook_size=8, epochs=30, batch_size=64)


def clustered(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """400 unit vectors round 8 centres, as text embeddings lie: close together, far from the origin."""
    rng = np.random.default_rng(seed)
    category = np.arange(400) % 8
    centres = rng.normal(size=(8, 16)) * 0.3 + 1.0
    vectors = centres[category] + rng.normal(size=(400, 16)) * 0.05
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), category


def test_codebooks_do_not_collapse_on_raw_unit_length_embeddings() -> None:
    vectors, category = clustered()
    model = fit_rqvae(vectors, category, RECIPE, seed=0)
    codes = model(torch.from_numpy(vectors))[0].numpy()
    assert len(np.unique(codes[:, 0])) >= 6


def test_first_codes_follow_the_category() -> None:
    vectors, category = clustered()
    codes = fit_rqvae(vectors, category, RECIPE, seed=0)(torch.from_numpy(vectors))[0].numpy()
    purity = sum(np.bincount(category[codes[:, 0] == code]).max() for code in np.unique(codes[:, 0])) / len(category)
    assert purity > 0.8  # chance is 1/8


def test_the_same_seed_gives_the_same_codes() -> None:
    vectors, category = clustered()
    one, other = (fit_rqvae(vectors, category, RECIPE, seed=3)(torch.from_numpy(vectors))[0] for _ in range(2))
    assert torch.equal(one, other)


def test_a_dead_code_is_moved_onto_a_residual() -> None:
    vectors, category = clustered()
    model = fit_rqvae(vectors, category, RECIPE, seed=0)
    with torch.no_grad():
        model.codebooks_LKZ[0, 0] = 1e3
    assert model.reset_dead_codes(torch.from_numpy(vectors), torch.Generator().manual_seed(0)) >= 1
    assert model.codebooks_LKZ[0, 0].abs().max() < 100


@pytest.mark.parametrize(("encoder", "epochs", "size"), [("mlp", 10, 128), ("pca", 0, 32)])
def test_different_texts_get_different_codes_where_there_are_enough(
    encoder: Literal["mlp", "pca"], epochs: int, size: int
) -> None:
    vectors, category = clustered()
    vectors[1::4] = vectors[::4]  # every other text is that of two items
    recipe = replace(RECIPE, encoder=encoder, epochs=epochs, codebook_size=size, distinct=True)
    model, text_NT = fit_rqvae(vectors, category, recipe, seed=0), torch.from_numpy(vectors)
    nearest, distinct = model(text_NT)[0], content_codes(model, text_NT)
    num_texts = len(np.unique(vectors, axis=0))
    assert len(nearest.unique(dim=0)) < num_texts == len(distinct.unique(dim=0))
    assert torch.equal(distinct[1::4], distinct[::4])
    assert torch.equal(distinct[:, 0], nearest[:, 0])


def test_principal_components_without_training_are_residual_k_means() -> None:
    vectors, category = clustered()
    model = fit_rqvae(vectors, category, replace(RECIPE, encoder="pca", epochs=0), seed=0)
    standard = (vectors - vectors.mean(0)) / vectors.std(0)
    latent = model.encoder(torch.from_numpy(standard)).detach().numpy()
    largest = np.linalg.svd(standard, compute_uv=False)[:8]
    assert np.square(latent).sum() == pytest.approx(np.square(largest).sum(), rel=1e-3)
    codes = model(torch.from_numpy(vectors))[0].numpy()
    centres = np.stack([latent[codes[:, 0] == code].mean(0) for code in np.unique(codes[:, 0])])
    np.testing.assert_allclose(model.codebooks_LKZ[0][np.unique(codes[:, 0])].detach().numpy(), centres, atol=1e-4)


def test_equal_texts_get_different_ids_by_their_suffix() -> None:
    codes = np.array([[1, 2], [1, 2], [0, 0]], np.int32)
    suffix = unique_suffixes(codes)
    assert len(SemanticIdTable(np.c_[codes, suffix], (4, 4, 4))) == 3


def test_as_many_categories_as_embeddings_are_needed() -> None:
    with pytest.raises(InvalidInputError, match="3 embeddings and 2 categories"):
        fit_rqvae(np.zeros((3, 4), np.float32), np.zeros(2, np.int64), RECIPE, seed=0)
