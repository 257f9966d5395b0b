"""Triton Python backend: text → word pieces → ONNX Runtime → text embedding. `tokenizer.json` and `model.onnx` stand
beside it. Copied to `1/model.py` of the text encoder at export.
"""

import triton_python_backend_utils as pb_utils  # isort: skip - first: it says where the other packages are

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from onnx_session import open_session

MAX_WORD_PIECES = 128


class TritonPythonModel:
    """One tokenizer and one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open both. Texts of a batch are padded to the longest, and cut where the encoder stops reading."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_WORD_PIECES)
        padding = self.tokenizer.padding or {}
        self.tokenizer.enable_padding(pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
        self.session = open_session(folder / "model.onnx", json.loads(args["model_config"]))

    def execute(self, requests: list) -> list:
        """Embed all texts of a dynamic batch at once, and hand each request its rows."""
        rows = [pb_utils.get_input_tensor_by_name(r, "text").as_numpy()[:, 0] for r in requests]
        try:
            encoded = self.tokenizer.encode_batch([text.decode() for text in np.concatenate(rows)])
            pieces = {
                "input_ids": np.asarray([e.ids for e in encoded], np.int64),
                "attention_mask": np.asarray([e.attention_mask for e in encoded], np.int64),
            }
            embedding = self.session.run(["text_embedding"], pieces)[0]
        except Exception as error:  # whatever is raised concerns these requests, not the server
            message = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            return [pb_utils.InferenceResponse(error=message) for _ in requests]
        ends = np.cumsum([len(texts) for texts in rows])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("text_embedding", embedding[end - len(texts) : end])])
            for end, texts in zip(ends, rows)
        ]
