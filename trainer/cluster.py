"""The same work on the nodes of a Ray cluster: a worker for each of its CPUs, which stays and does one task after another.

pip install "baguni[ray]"        every node reads files at the same paths
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baguni.domain.errors import InvalidInputError, UnavailableError

CONNECT_S, START_S = 5.0, 120

Work = Callable[[Any], dict[str, NDArray[Any]]]
"""What is done with a task."""


@dataclass(frozen=True)
class Done:
    """What became of a task, and on which node."""

    arrays: dict[str, NDArray[Any]]
    node: str


def on_cluster(
    address: str, hire: Callable[..., Work], arguments: Sequence[Any], tasks: Sequence[Any]
) -> Iterator[Done]:
    """What `hire(*arguments)`, called by each worker once, makes of every task, in the order of tasks. `address`: HOST:PORT, or
    "auto". Raises InvalidInputError where Ray is not installed, UnavailableError where no cluster answers."""
    try:
        import ray
    except ImportError as error:
        raise InvalidInputError("--ray needs Ray: pip install 'baguni[ray]'", "ray") from error
    host, _, port = address.rpartition(":")
    try:
        if host:  # Ray itself waits for minutes, and then ends the process
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnavailableError("ray", f"no cluster at {address!r}: {error}") from error
    try:
        numbered = ray.data.from_items(
            [{"number": number, "task": task} for number, task in enumerate(tasks)], override_num_blocks=len(tasks)
        )
        workers = min(int(ray.cluster_resources().get("CPU", 1)), len(tasks))
        ray.data.DataContext.get_current().wait_for_min_actors_s = START_S  # or the first does it all
        pool = ray.data.ActorPoolStrategy(size=workers)
        made = numbered.map_batches(_Worker, fn_constructor_args=(hire, arguments), batch_size=1, compute=pool)
        rows = sorted(made.take_all(), key=lambda row: int(row["number"]))
    finally:
        ray.shutdown()
    for row in rows:
        yield Done(
            {name: np.asarray(array) for name, array in row.items() if name not in ("number", "node")}, row["node"]
        )


class _Worker:
    """Stays on a node."""

    def __init__(self, hire: Callable[..., Work], arguments: Sequence[Any]) -> None:
        import ray

        self._work = hire(*arguments)
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        arrays = {name: [array] for name, array in self._work(batch["task"][0]).items()}
        return {**arrays, "number": batch["number"], "node": [self._node]}
