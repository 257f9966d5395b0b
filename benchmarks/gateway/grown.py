"""A release with a catalogue grown by noisy copies of its items: as many as a large shop has, and models that are real."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from baguni.domain.catalog import Catalog
from baguni.domain.release import MANIFEST, Release, write_manifest
from baguni.domain.semantic_ids import SemanticIdTable

NOISE = 0.3  # of a vector's spread


def grow(release: Release, target: Path, num_items: int) -> Release:
    """The release at `target` with `num_items` items; the copies come after its own, were never ordered and have free codes."""
    shutil.copytree(release.path, target)
    rng, own = np.random.default_rng(0), len(release.catalog.items)
    source = rng.integers(0, own, num_items - own)
    copies = [replace(release.catalog.items[of], item_id=f"copy-{number}") for number, of in enumerate(source.tolist())]
    Catalog([*release.catalog.items, *copies], release.catalog.attribute_types).save(target / "catalog.parquet")
    for name, vectors_ND in (("item_vectors", release.item_vectors), ("content_vectors", release.content_vectors)):
        noise = NOISE * vectors_ND.std(axis=0) * rng.standard_normal((len(source), vectors_ND.shape[1]))
        copied = vectors_ND[source] + noise
        if name == "content_vectors":
            copied /= np.linalg.norm(copied, axis=1, keepdims=True)
        np.save(target / f"{name}.npy", np.vstack([vectors_ND, copied.astype(np.float32)]))
    np.save(target / "popularity.npy", np.r_[release.popularity, np.zeros(len(source), release.popularity.dtype)])
    table = release.semantic_ids
    codes_NL = np.vstack([table.codes_NL, _free_codes(table, len(source), rng)])
    SemanticIdTable(codes_NL, table.codebook_sizes).save(target / "semantic_ids.npz")
    (target / MANIFEST).unlink()
    kept = {key: value for key, value in release.manifest.items() if key not in ("parts", "created_at")}
    return write_manifest(target, kept)


def _free_codes(table: SemanticIdTable, count: int, rng: np.random.Generator) -> np.ndarray:
    taken = {tuple(codes) for codes in table.codes_NL.tolist()}
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        codes = tuple(int(rng.integers(size)) for size in table.codebook_sizes)
        if codes not in taken:
            taken.add(codes)
            found.append(codes)
    return np.asarray(found, np.int32)
