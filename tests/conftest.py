"""Real servers and a real release, started once for all tests that ask for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from baguni.domain.release import Release, ReleaseStore, load_release
from baguni.releases.activation import activate
from baguni.settings import Endpoints
from deploy.local.settings import PORTS, PORTS_VARIABLE, StackSettings
from deploy.local.stack import LocalStack


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of the tiny shop, made once for all workers, which only read it; its run lies beside it, in `run`, and its text
    encoder in `encoder`."""
    from tests.tiny_release import build_tiny_release

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(f"{folder}.lock"):
        if (folder / "release/manifest.json").is_file():
            return load_release(folder / "release")
        return build_tiny_release(folder)


# A gateway's limits on a machine that is busy with other tests: otherwise, answers are degraded where a test wants them whole.
PATIENT = {f"BAGUNI_{part}_TIMEOUT_S": "3" for part in ("HISTORY", "ENCODE", "SEARCH", "SCORE")}
PLACEMENTS = {"BAGUNI_PLACEMENTS": "counted"}  # others are "other" in metrics once tests have made up some dozen


@pytest.fixture(scope="session")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Redis, broker, Milvus and Triton on free ports; `local_stack.settings` says where."""
    settings = StackSettings.on_free_ports(tmp_path_factory.mktemp("stack"))
    os.environ.update(PATIENT | PLACEMENTS)  # supervisord hands it on
    stack = LocalStack(
        settings.model_copy(update={"fetch_wait_ms": 200, "start_timeout_s": 600})
    )  # idle consumers leave the cores to the tests
    try:
        stack.start_servers()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def stack(local_stack: LocalStack) -> Endpoints:
    """Where the servers are."""
    return local_stack.settings.endpoints()


@pytest.fixture(scope="session")
def active_release(stack: Endpoints, tiny_release: Release) -> Release:
    """The tiny release, loaded into Triton and Milvus and pointed to."""
    store = ReleaseStore(stack.releases)
    store.add(tiny_release.path)
    return activate(store, tiny_release.release_id, stack)


@pytest.fixture(scope="session")
def running(local_stack: LocalStack, active_release: Release) -> Endpoints:
    """The whole system: servers, gateway and consumers over the tiny release."""
    local_stack.start_applications()
    return local_stack.settings.endpoints()


@pytest.fixture
def fresh_group(monkeypatch: pytest.MonkeyPatch) -> str:
    """A suffix that makes consumer groups of this test its own."""
    suffix = f"-{os.urandom(4).hex()}"
    monkeypatch.setenv("BAGUNI_GROUP_SUFFIX", suffix)
    return suffix


def repository() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


WORKER_PORTS = 2_000  # for each worker its own: a port is chosen long before something listens there


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker a part of the ports."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = PORTS.start + int(worker) * WORKER_PORTS % len(PORTS)
    os.environ[PORTS_VARIABLE] = f"{first}-{first + WORKER_PORTS - 1}"


SLOW_FIXTURES = {"tiny_release", "complete_journey", "december"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as slow what needs a training or a year of orders."""
    if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # after the tests were put into a random order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with slow modules, end with those that need no server: workers then end at about the same time. One worker makes
    the tiny release, while the others run what does not wait for it."""
    slow = list(dict.fromkeys(item.path for item in items if _is_module(item, "slow")))
    served = {item.path for item in items if _is_module(item, "stack")}
    waiting = {item.path for item in items if "tiny_release" in getattr(item, "fixturenames", ())}
    maker = next((path for path in slow if path in waiting), None)

    def place(item: pytest.Item) -> int:
        if item.path not in slow:
            return 3 if item.path in served else 4
        return 0 if item.path == maker else 1 + (item.path in waiting)

    items.sort(key=place)


def _is_module(item: pytest.Item, mark: str) -> bool:
    """Return whether the item's module has this mark."""
    module = item.getparent(pytest.Module)
    return module is not None and any(each.name == mark for each in module.iter_markers())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was left out, a line for each reason."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("left out")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} test{'s' if count > 1 else ''} not run: {reason}")
