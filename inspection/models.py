"""A release's models in Triton, asked directly: what the gateway computes on the way to a list and does not return."""

# U = users, C = candidates, L = code levels

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from baguni.clients.inference import Arrays, SyncInferenceClient, summarise, triton_inputs
from baguni.domain.errors import UnavailableError
from baguni.domain.history import HistoryEvent
from baguni.domain.release import Release
from baguni.domain.scoring import candidate_codes
from baguni.domain.signature import EVERYTHING
from inspection.retrieval import Encoded

TIMEOUT_S = 20.0
ROWS_AT_ONCE = 4  # some 20 ms on a CPU: shoppers' requests wait behind it, and Triton turns away who waits 100 ms
ATTEMPTS, PAUSE_S = 6, 0.2
Events = Sequence[HistoryEvent]


class ReleaseModels:
    """Blocking calls, from any thread. Raises UnavailableError where Triton does not answer or has not loaded the release."""

    def __init__(self, release: Release, triton_url: str) -> None:
        self.release = release
        self._client = SyncInferenceClient(triton_url, release.release_id, release.signature)
        self._one_at_a_time = threading.Lock()

    def is_loaded(self) -> bool:
        """Whether all of them are ready."""
        return self._client.is_loaded()

    def known_items(self, events: Events, now_ms: int, count: int) -> list[str]:
        """The items of a history that the models read first: those that its summary holds for most important."""
        inputs = self._inputs([events], now_ms)
        items = self.release.catalog.items
        return [items[index - 1].item_id for index in inputs["item_index"][0].tolist()[:count] if index > 0]

    def encode(self, histories: Sequence[Events], now_ms: int | Sequence[int]) -> list[Encoded | None]:
        """Each user as the retrieval head sees them; None for one of whom nothing is known. `now_ms`: for all, or one each."""
        encoded: list[Encoded | None] = []
        for arrays in self._batches(histories, now_ms):
            outputs = self._infer("user_encoder", arrays)
            rows = zip(arrays["item_index"], outputs["user_embedding"], outputs["repeat_score"], strict=True)
            for item_S, embedding_qV, repeat_S in rows:
                known = item_S > 0
                known_S = item_S[known].astype(np.int64) - 1
                encoded.append(Encoded(embedding_qV[EVERYTHING], known_S, repeat_S[known]) if known.any() else None)
        return encoded

    def log_likelihoods(self, histories: Sequence[Events], now_ms: int, items: Sequence[int]) -> NDArray[np.float32]:
        """Return [U, C], the generative head's log-likelihoods, in nats, of at most NUM_CANDIDATES items for each user."""
        codes_CL = candidate_codes(self.release.semantic_ids.codes_NL, np.asarray(items))
        rows = []
        for arrays in self._batches(histories, now_ms):
            asked = {**arrays, "candidate_codes": np.tile(codes_CL, (len(arrays["position"]), 1, 1))}
            outputs = self._infer("scorer", asked)
            rows.append(outputs["candidate_log_likelihood"][:, : len(items)])
        return np.concatenate(rows)

    def generate(self, events: Events, now_ms: int, count: int) -> list[tuple[int, float]]:
        """What the generative head writes: indexes of items and log-likelihoods, best first."""
        arrays = {**self._inputs([events], now_ms), "node_mask": np.ones((1, 1), np.bool_)}
        outputs = self._infer("generator", arrays)
        found = zip(outputs["generated_item"][0].tolist(), outputs["log_likelihood"][0].tolist(), strict=True)
        return [(index, score) for index, score in found if index >= 0][:count]

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _infer(self, model: str, arrays: Arrays) -> Arrays:
        """One request at a time, however many pages are open: shoppers come first. What is turned away is asked again."""
        with self._one_at_a_time:
            for attempt in range(1, ATTEMPTS):
                try:
                    return self._client.infer(model, arrays, TIMEOUT_S)
                except UnavailableError:
                    time.sleep(attempt * PAUSE_S)
            return self._client.infer(model, arrays, TIMEOUT_S)

    def _batches(self, histories: Sequence[Events], now_ms: int | Sequence[int]) -> Iterator[Arrays]:
        size = min(ROWS_AT_ONCE, self.release.signature.max_batch_size)
        moments = [now_ms] * len(histories) if isinstance(now_ms, int) else now_ms
        for start in range(0, len(histories), size):
            yield self._inputs(histories[start : start + size], moments[start : start + size])

    def _inputs(self, histories: Sequence[Events], now_ms: int | Sequence[int]) -> Arrays:
        signature = self.release.signature
        inputs = summarise(histories, now_ms, self.release.catalog.index, signature)
        return triton_inputs(inputs, self.release.semantic_ids.codes_NL, signature)
