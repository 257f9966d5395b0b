"""Run Milvus standalone from the wheel `milvus`, until told to stop. Run by the servers' Python:

python milvus_server.py DATA_DIR PORT
"""

import signal
import sys
from pathlib import Path

from milvus import MilvusServer, MilvusServerConfig


def main(data_dir: str, port: str) -> None:
    """The wheel unpacks its binaries into the data directory; sharing them saves minutes and 300 MB for each further one."""
    data = Path(data_dir)
    binaries = Path(sys.prefix) / "milvus-bin"
    binaries.mkdir(exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "bin").exists():
        (data / "bin").symlink_to(binaries)
    server = MilvusServer(MilvusServerConfig(data_dir=str(data), proxy_port=int(port)), wait_for_started=False)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    server.start()
    status = server.server_proc.wait()
    sys.exit(status or 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
