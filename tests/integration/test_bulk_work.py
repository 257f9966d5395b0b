"""Lists for all users of a log, and embeddings of all texts: what one process makes, two nodes of a Ray cluster make too, to
the last bit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from baguni.domain.errors import InvalidInputError
from baguni.domain.release import Release
from deploy.local.settings import free_port
from tests.conftest import repository
from tests.waiting import COMMAND_S, eventually
from trainer.bulk import BulkGenerator
from trainer.run import Run
from trainer.segments.next_item import NextItem
from trainer.text import BATCH, BUNDLED, TextEncoder

pytestmark = pytest.mark.slow

K = 5
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(repository())}


@pytest.fixture(scope="module")
def data(tiny_release: Release) -> Path:
    """The tiny shop's folder."""
    return tiny_release.path.parent / "shop"


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of two nodes with one CPU each; its address. Drivers are processes of their own, and so is what
    Ray does to a process. By default, Ray listens on the same ports everywhere, which other servers may have."""
    address, folder = f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("ray")
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    ray += ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    head += [f"--{name}-port={free_port()}" for name in ("ray-client-server", "dashboard")]
    nodes = []
    try:
        for name, options in (("head", head), ("second", [f"--address={address}"])):
            with (folder / name).open("wb") as log:
                own = f"--dashboard-agent-listen-port={free_port()}"
                node = subprocess.Popen([*ray, own, *options], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
            nodes.append(node)
            eventually(
                lambda name=name: "Ray runtime started" in (folder / name).read_text(), seen=lambda: logged(folder)
            )
        awaited = "the head knows the second node and its processor"
        eventually(lambda: num_nodes(ray[0], address) == (2, 2), awaited, interval_s=1.0)
        yield address
    finally:
        for node in reversed(nodes):
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                process.kill()
            node.wait(COMMAND_S)


def logged(folder: Path) -> str:
    """Return the end of each node's log."""
    return "\n".join(f"{path.name}: {path.read_text()[-2_000:]}" for path in sorted(folder.iterdir()))


def num_nodes(ray: str, address: str) -> tuple[int, int]:
    """Return how many nodes work, and how many processors they have, by `ray status`; the head does not know at once what a
    node has that started."""
    command = [ray, "status", "--address", address]
    status = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=COMMAND_S, check=False
    ).stdout
    processors = re.search(r"^ [\d.]+/(\d+)[\d.]* CPU$", status, re.M)
    nodes = re.findall(r"^ \d+ node_\w+", status.partition("Pending:")[0], re.M)
    return len(nodes), int(processors[1]) if processors else 0


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "baguni.cli", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_nodes_write_what_one_process_writes(
    tiny_release: Release, data: Path, two_nodes: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    asked = ("generate", data, "--release", tiny_release.path, "--k", K, "--users-at-once", 2)
    assert "made on 1 node(s)" in run(*asked, "--out", here)
    assert "made on 2 node(s)" in run(*asked, "--out", there, "--ray", two_nodes)
    assert pq.read_table(here).equals(pq.read_table(there))
    assert len(pq.read_table(here)) > 100


def test_two_nodes_read_texts_as_one_process_does(two_nodes: str, tmp_path: Path) -> None:
    texts = [f"{'rye bread, ' * (number % 7)}a thing of size {number}" for number in range(3 * BATCH)] + [
        "새우깡",
        "새우깡",
    ]
    np.save(tmp_path / "texts.npy", np.asarray(texts))
    program = """
import sys
from pathlib import Path
import numpy as np
from trainer.text import BUNDLED, TextEncoder

folder, address, counted = Path(sys.argv[1]), sys.argv[2], []
encoder = TextEncoder(BUNDLED, folder / "text-encoders")
np.save(folder / "there.npy", encoder.embed(np.load(folder / "texts.npy"), lambda *count: counted.append(count), address))
print(counted)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, two_nodes],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    distinct = 3 * BATCH + 1
    assert done.stdout.strip() == str([(BATCH * batches, distinct) for batches in (1, 2, 3)] + [(distinct, distinct)])
    here = TextEncoder(BUNDLED, tmp_path / "text-encoders").embed(texts)
    assert np.load(tmp_path / "there.npy").tobytes() == here.tobytes()


def test_a_training_names_a_cluster_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no cluster at"):
        run("train", data, "--run", tmp_path / "run", "--recipe", "tiny", "--ray", f"127.0.0.1:{free_port()}")
    assert not (tmp_path / "run/embeddings.npy").exists()


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
    with pytest.raises(AssertionError, match="no cluster at"):
        run(
            "generate",
            data,
            "--release",
            tiny_release.path,
            "--k",
            K,
            "--out",
            tmp_path / "no.parquet",
            "--ray",
            f"127.0.0.1:{free_port()}",
        )
    assert not (tmp_path / "no.parquet").exists()
