"""Triton Inference Server in its container, with BAGUNI_RELEASES and BAGUNI_TRITON_REPOSITORY as every process has them.

The models of the active release are loaded before it listens. Then the pointer is followed: a replica that came up
between the loading of a release and the switch to it loads by itself what it lacks. To load a release on every replica
before the switch is the business of `baguni release activate`.

It needs nothing but Python: none of our packages are in Triton's image.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POINTER = "ACTIVE.json"
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
FOLLOW_S = 5.0
READY_TIMEOUT_S, LOAD_TIMEOUT_S = 5.0, 600.0
DRAIN_S = 30  # what has begun may end; below terminationGracePeriodSeconds
CONNECTION_AGE_MS, CONNECTION_GRACE_MS = (
    300_000,
    60_000,
)  # clients look again who is there, so that they find new replicas


def command(repository: Path, models: Sequence[str]) -> list[str]:
    """How the server is started.

    Readiness is not strict: strictly, a server that answers with one release is not ready while it loads the next one, and
    every client would be sent away from it.
    """
    return [
        "tritonserver",
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",
        "--exit-on-error=false",  # a model that does not load leaves the others
        f"--exit-timeout-secs={DRAIN_S}",
        f"--http-port={HTTP_PORT}",
        f"--grpc-port={GRPC_PORT}",
        f"--metrics-port={METRICS_PORT}",
        f"--grpc-max-connection-age={CONNECTION_AGE_MS}",
        f"--grpc-max-connection-age-grace={CONNECTION_GRACE_MS}",
        *(f"--load-model={model}" for model in models),
    ]


def active_models(repository: Path, releases: Path) -> list[str]:
    """The models in the repository that belong to the release that is pointed to; none before there is one."""
    try:
        release_id = json.loads((releases / POINTER).read_text())["release_id"]
    except FileNotFoundError:
        return []
    return sorted(model.name for model in repository.glob(f"*_{release_id}"))


def load_missing(models: Sequence[str], url: str) -> list[str]:
    """Load the models that are not ready in the server at `url`, and return their names. Those that somebody else loads are
    left to them. Raises OSError if it does not answer or cannot load one."""
    missing = [model for model in models if not _is_ready(f"{url}/v2/models/{model}/ready")]
    changing = _changing(url) if missing else set()
    missing = [model for model in missing if model not in changing]
    for model in missing:
        request = urllib.request.Request(f"{url}/v2/repository/models/{model}/load", b"{}", method="POST")  # noqa: S310
        urllib.request.urlopen(request, timeout=LOAD_TIMEOUT_S).close()  # noqa: S310 - our own server
    return missing


def _changing(url: str) -> set[str]:
    """Return the models that are being loaded or unloaded."""
    request = urllib.request.Request(f"{url}/v2/repository/index", b"{}", method="POST")  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as reply:  # noqa: S310 - our own server
        return {entry["name"] for entry in json.load(reply) if entry.get("state") in ("LOADING", "UNLOADING")}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=READY_TIMEOUT_S):  # noqa: S310 - our own server
            return True
    except urllib.error.HTTPError:
        return False


def run(
    environment: Mapping[str, str], stopping: threading.Event, start: Callable[[list[str]], subprocess.Popen[bytes]]
) -> int:
    """The server's exit status, once it has ended or was told to."""
    repository, releases = Path(environment["BAGUNI_TRITON_REPOSITORY"]), Path(environment["BAGUNI_RELEASES"])
    server = start(command(repository, active_models(repository, releases)))
    while server.poll() is None and not stopping.wait(FOLLOW_S):
        try:
            if loaded := load_missing(active_models(repository, releases), f"http://127.0.0.1:{HTTP_PORT}"):
                print(f"loaded what was missing: {', '.join(loaded)}", file=sys.stderr)
        except (OSError, ValueError) as error:  # it is still starting, or a model is damaged: look again
            print(f"not followed: {error}", file=sys.stderr)
    server.terminate()
    return server.wait()


def main() -> None:
    """Run until SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    sys.exit(run(os.environ, stopping, subprocess.Popen))


if __name__ == "__main__":
    main()
