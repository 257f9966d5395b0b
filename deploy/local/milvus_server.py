"""Run Milvus standalone from the wheel `milvus`, until told to stop. Run by the servers' Python:

python milvus_server.py DATA_DIR PORT METRICS_PORT
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from milvus import MilvusServer, MilvusServerConfig

# A search walks the graph of each segment, so segments may be large. One is closed when it is nearly as large as they get,
# and written in few pieces: closed sooner, or written in many, it is indexed, compacted, and indexed again. docs/adr/0023.
LARGE_SEGMENTS = {
    "DATACOORD_SEGMENT_MAXSIZE": "2048",  # MB
    "DATACOORD_SEGMENT_SEALPROPORTION": "0.9",
    "DATANODE_SEGMENT_INSERTBUFSIZE": "134217728",  # bytes
}
# The only query node would wait half an hour for another to take its segments, and be killed before. In seconds.
SHORT_STOP = {"COMMON_GRACEFULSTOPTIMEOUT": "1"}


class Config(MilvusServerConfig):  # type: ignore[misc]
    """Takes a port whose last connections are still dying, as every server does: the wheel's own check refuses to start
    for a minute after a stop."""

    def try_bind_port(self, port: int) -> socket.socket | None:
        """A listening socket on the port, None if another process has it."""
        try:
            return socket.create_server(("127.0.0.1", port))  # sets SO_REUSEADDR
        except OSError:
            return None


def main(data_dir: str, port: str, metrics_port: str) -> None:
    """The wheel unpacks its binaries into the data directory; sharing them saves 300 MB and a minute for each."""
    data = Path(data_dir)
    binaries = Path(sys.prefix) / "milvus-bin"
    binaries.mkdir(exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "bin").exists():
        (data / "bin").symlink_to(binaries)
    for name, value in (LARGE_SEGMENTS | SHORT_STOP).items():
        os.environ.setdefault(name, value)
    etcd_data = data / "data" / "etcd.data"
    is_new = not etcd_data.exists()
    etcd_port, peer_port = free_ports(2)
    os.environ["ETCD_CONFIG_PATH"] = str(write_etcd_config(data, etcd_port, peer_port))
    config = Config(data_dir=str(data), proxy_port=int(port), etcd_port=etcd_port)
    server = MilvusServer(config, wait_for_started=False)
    server.webservice_port = int(metrics_port)
    with (binaries / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first starts at once would unpack into files that the other one runs
        server.start()
    milvus = server.server_proc
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: milvus.terminate())
    # Waited for here: the wheel's own stop kills after a second, and a killed Milvus leaves sessions behind in its etcd
    # that keep the next one waiting for a minute.
    has_listened = False
    while (status := milvus.poll()) is None:
        has_listened = has_listened or listens(int(port))
        with contextlib.suppress(subprocess.TimeoutExpired):
            milvus.wait(0.5 if not has_listened else None)
    if is_new and not has_listened:  # a port was taken: an etcd that ended before its first write never elects a leader
        shutil.rmtree(etcd_data, ignore_errors=True)
    sys.exit(status)


def listens(port: int) -> bool:
    """Return whether something listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_etcd_config(data: Path, client_port: int, peer_port: int) -> Path:
    """Milvus' embedded etcd listens on 2379 and 2380 unless told otherwise, whatever port Milvus was given for it:
    a second Milvus on the machine would die of that."""
    path = data / "etcd.yaml"
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    path.write_text(
        f"name: default\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n"
        f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: default={peer}\n"
    )
    return path


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens, all different, below those that the kernel gives to outgoing connections:
    one of these can be taken before Milvus listens on it."""
    found: set[int] = set()
    while len(found) < count:
        port = 10_000 + secrets.randbelow(10_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
