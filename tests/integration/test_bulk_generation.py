"""Lists for all users of a log: what one process writes, two nodes of a Ray cluster write too, to the last bit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner, Result
from ray.cluster_utils import Cluster

from baguni.errors import InvalidInputError, UnavailableError
from baguni.release import Release
from deploy.local.settings import free_port
from tests.conftest import repository
from trainer.bulk import BulkGenerator, in_one_process, on_ray
from trainer.cli import generate
from trainer.run import Run
from trainer.segments.next_item import NextItem

K = 5


@pytest.fixture(scope="module")
def data(tiny_release: Release) -> Path:
    """The tiny shop's folder."""
    return tiny_release.path.parent / "shop"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes with one CPU each; its address."""
    paths = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{repository()}:{paths}" if paths else str(repository())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ["PYTHONPATH"] = paths


def run(*arguments: object) -> Result:
    return CliRunner().invoke(generate, list(map(str, arguments)), catch_exceptions=False)


def test_two_nodes_write_what_one_process_writes(
    tiny_release: Release, data: Path, two_nodes: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert "made on 1 node(s)" in run(data, "--release", tiny_release.path, "--k", K, "--out", here).output
    run(data, "--release", tiny_release.path, "--k", K, "--out", there, "--ray", two_nodes)
    assert pq.read_table(here).equals(pq.read_table(there))
    generator = BulkGenerator(tiny_release.path, data, K, chunk=2)
    ray.data.DataContext.get_current().wait_for_min_actors_s = 60  # so that the first node does not do it all meanwhile
    nodes = set()
    found = on_ray(two_nodes, tiny_release.path, data, K, generator.num_users, chunk=2)
    for one, other in zip(in_one_process(generator), found, strict=True):
        assert one.first_user == other.first_user
        assert one.item_Bk.tobytes() == other.item_Bk.tobytes()
        assert one.log_likelihood_Bk.tobytes() == other.log_likelihood_Bk.tobytes()
        nodes.add(other.node)
    assert len(nodes) == 2


def test_a_list_has_the_likeliest_items(tiny_release: Release, data: Path) -> None:
    """Of the whole catalogue, by the trained model's own likelihoods."""
    generator = BulkGenerator(tiny_release.path, data, K)
    lists = generator.lists(0)
    trained = Run.opened(tiny_release.path.parent / "run", data)
    users = np.arange(len(lists.item_Bk))
    now_B = np.full(len(users), generator.now_ms)
    exact_BN = NextItem(trained, trained.model()).probabilities(users, now_B, now_B).log().numpy()
    for row, (items, likelihoods) in enumerate(zip(lists.item_Bk, lists.log_likelihood_Bk, strict=True)):
        if items[0] >= 0:
            behind_first = exact_BN[row, items] - exact_BN[row, items[0]]
            assert behind_first == pytest.approx(likelihoods - likelihoods[0], abs=1e-3)
            assert items[0] == exact_BN[row].argmax()
    assert (lists.item_Bk[:, 0] >= 0).mean() > 0.9


def test_bad_input_is_named(tiny_release: Release, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="k is 99, expected 1 to the release's 16 beams"):
        BulkGenerator(tiny_release.path, data, 99)
    manifest = json.loads((tiny_release.path / "manifest.json").read_text())
    for name in ("signature.json", "catalog.parquet"):
        (tmp_path / name).write_bytes((tiny_release.path / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "target": "tensorrt"}))
    with pytest.raises(InvalidInputError, match="was exported for tensorrt, expected python or onnxruntime"):
        BulkGenerator(tmp_path, data, K)
    with pytest.raises(UnavailableError, match="no cluster at"):
        list(on_ray(f"127.0.0.1:{free_port()}", tiny_release.path, data, K, 1))
