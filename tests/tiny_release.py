"""A real release in seconds: the tiny shop, a sentence encoder of a few thousand weights, the tiny recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from baguni.domain.release import Release, write_manifest
from tests.tiny_shop import KINDS, SHELVES, write_tiny_shop
from trainer.export import build_release
from trainer.recipes import recipe_named
from trainer.run import Run

WORDS = ("[PAD]", "[UNK]", *KINDS, *(s.lower() for s in SHELVES), "grocery", "household", "own", "other", ">", ".", ",")


def build_tiny_release(path: Path, seed: int = 0) -> Release:
    """Train on the tiny shop under `path`/run and write the release `path`/release."""
    run = tiny_run(path, seed)
    run.embed_items()
    run.fit_semantic_ids()
    run.train_dual_head()
    run.distil()
    return build_release(run, path / "release")


def renamed(
    release: Release, target: Path, release_id: str, change: Callable[[Path], object] = lambda path: None
) -> Release:
    """The same release under another id, as a second training would give: models, configs and manifest say so. `change` may
    alter parts of the copy before its manifest is written."""
    shutil.copytree(release.path, target)
    for model in sorted((target / "triton").iterdir()):
        config = model / "config.pbtxt"
        config.write_text(config.read_text().replace(release.release_id, release_id))
        model.rename(model.with_name(model.name.replace(release.release_id, release_id)))
    (target / "manifest.json").unlink()
    change(target)
    return write_manifest(target, {"release_id": release_id, "dataset": "tiny-shop", "metrics": {}})


def tiny_run(path: Path, seed: int = 0) -> Run:
    """An empty run of the tiny recipe on the tiny shop."""
    encoder = write_tiny_sentence_encoder(path / "encoder")
    recipe = recipe_named("tiny", text_encoder=str(encoder), seed=seed)
    return Run(path / "run", write_tiny_shop(path / "shop"), recipe)


def write_tiny_sentence_encoder(path: Path) -> Path:
    """A sentence-transformers model with random weights, which tells words apart and needs no download."""
    if (path / "modules.json").is_file():
        return path
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    bert = path / "bert"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights, and so the same release, in every run
        BertModel(config).save_pretrained(bert)
    transformer = Transformer(str(bert))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling]).save(str(path))
    return path
