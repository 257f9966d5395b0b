"""Lists of the generative head for all users of a log, without servers: in this process, or on the nodes of a Ray cluster.
Either way the same users go through the same graph together, so the numbers are the same to the last bit.
"""

# B = users of a chunk, k = items of a list

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from baguni.clients.inference import summarise, triton_inputs
from baguni.domain.errors import InvalidInputError
from baguni.domain.release import load_release
from baguni.domain.signature import model_specs, triton_model_name
from trainer.cluster import Work, on_cluster
from trainer.data.reading import load_dataset
from trainer.segments.forecasts import next_midnight_ms

CHUNK = 16  # users that are read, padded and generated for together; as many give the same bits
HERE = "here"


@dataclass(frozen=True)
class Lists:
    """Of some users, in their order: item indexes of the release, best first, −1 where fewer are left or nothing is known of
    the user; log-likelihoods in nats. `node`: where they were made."""

    first_user: int
    item_Bk: NDArray[np.int32]
    log_likelihood_Bk: NDArray[np.float32]
    node: str = HERE


class BulkGenerator:
    """A release's generator over a log. Raises InvalidInputError for a release whose models need a GPU, or `k` beyond its
    beams."""

    def __init__(self, release: Path, data: Path, k: int, threads: int = 1, chunk: int = CHUNK) -> None:
        self._release, self._dataset, self._k = load_release(release, verify=False), load_dataset(data), k
        self._signature = self._release.signature
        if not 0 < k <= self._signature.num_beams:
            raise InvalidInputError(f"k is {k}, expected 1 to the release's {self._signature.num_beams} beams", "k")
        name = triton_model_name("generator", self._release.release_id)
        graph = self._release.triton_dir / name / "1" / "model.onnx"
        if not graph.is_file():
            target = self._release.manifest.get("target")
            raise InvalidInputError(f"{release} was exported for {target}, expected python or onnxruntime", "release")
        self._graph, self._threads = graph, threads
        self._spec = model_specs(self._signature)["generator"]
        self.chunk = chunk
        self.now_ms = next_midnight_ms(self._dataset)  # what lists are made for

    @cached_property
    def _session(self) -> ort.InferenceSession:
        """Opened by whoever makes lists: a driver of others makes none."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        return ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])

    @property
    def num_users(self) -> int:
        """Of the log."""
        return len(self._dataset.user_ids)

    def lists(self, first_user: int) -> Lists:
        """Of a chunk of users from that one on, as of the midnight after the log."""
        users = range(first_user, min(first_user + self.chunk, self.num_users))
        histories = [self._dataset.history(user) for user in users]
        inputs = summarise(histories, self.now_ms, self._release.catalog.index, self._signature)
        arrays = triton_inputs(inputs, self._release.semantic_ids.codes_NL, self._signature)
        arrays["node_mask"] = np.ones((len(users), 1), bool)
        names = [tensor.name for tensor in self._spec.outputs]
        found = dict(zip(names, self._session.run(names, arrays), strict=True))
        item_Bk = np.where(inputs.item_BS[:, :1] >= 0, found["generated_item"][:, : self._k], -1).astype(np.int32)
        return Lists(first_user, item_Bk, found["log_likelihood"][:, : self._k])

    def rows(self, lists: Lists) -> dict[str, list[Any]]:
        """In a shop's own terms: user_id, position, item_id, log_likelihood."""
        row_I, position_I = np.nonzero(lists.item_Bk >= 0)
        items, user_ids = self._release.catalog.items, self._dataset.user_ids
        return {
            "user_id": [user_ids[lists.first_user + row] for row in row_I.tolist()],
            "position": position_I.tolist(),
            "item_id": [items[index].item_id for index in lists.item_Bk[row_I, position_I].tolist()],
            "log_likelihood": lists.log_likelihood_Bk[row_I, position_I].tolist(),
        }


def in_one_process(generator: BulkGenerator) -> Iterator[Lists]:
    """All lists, here."""
    yield from map(generator.lists, range(0, generator.num_users, generator.chunk))


def on_ray(address: str, release: Path, data: Path, k: int, num_users: int, chunk: int = CHUNK) -> Iterator[Lists]:
    """All lists, in the order of users, by a Ray cluster, whose nodes read the release and the data at the same paths. Raises
    as `on_cluster` does."""
    firsts = range(0, num_users, chunk)
    arguments = (release.resolve(), data.resolve(), k, chunk)
    for first, done in zip(firsts, on_cluster(address, _hire, arguments, firsts), strict=True):
        yield Lists(first, done.arrays["item"], done.arrays["log_likelihood"], done.node)


def _hire(release: Path, data: Path, k: int, chunk: int) -> Work:
    generator = BulkGenerator(release, data, k, chunk=chunk)

    def work(first_user: int) -> dict[str, NDArray[Any]]:
        lists = generator.lists(int(first_user))
        return {"item": lists.item_Bk, "log_likelihood": lists.log_likelihood_Bk}

    return work
