"""What is set in the manifests and in compose.yaml exists, has a value that is taken, and opens the ports that are named."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from baguni.domain.events import DEAD_LETTER_TOPIC, DELETION_TOPIC, EXPOSURE_TOPIC, ITEM_TOPIC, USER_TOPICS
from baguni.settings import Endpoints
from crm.settings import CrmSettings
from deploy.containers import triton
from server.settings import ServerSettings
from streaming.settings import StreamingSettings
from tests.manifests import ROOT, SERVERS, Overlay

PROCESSES: dict[str, type[Endpoints]] = {
    "gateway": ServerSettings,
    "user-consumer": StreamingSettings,
    "item-consumer": StreamingSettings,
    "crm": CrmSettings,
    "nightly": CrmSettings,  # the client's among them
    "operator": ServerSettings,
    "trainer": CrmSettings,
    "triton": Endpoints,
}
BESIDE_THE_CLASSES = {"BAGUNI_SECRETS_DIR"}  # baguni/settings.py reads it itself
TOPICS = (*USER_TOPICS, ITEM_TOPIC, EXPOSURE_TOPIC, DEAD_LETTER_TOPIC)
PREFIX = "BAGUNI_"
KAFKA_MESSAGE_BYTES = 1_048_588  # max.message.bytes of a topic that has no setting of its own


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    return content


def composed() -> Iterator[tuple[str, dict[str, str]]]:
    """(service of ours, its environment)."""
    for name, service in compose()["services"].items():
        if name in PROCESSES:
            yield name, service["environment"]


def read(process: str, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings, as the process would read them. Fails for a variable that its class does not know."""
    settings, ours = PROCESSES[process], {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    known = {PREFIX + field.upper() for field in settings.model_fields} | BESIDE_THE_CLASSES
    assert ours.keys() <= known, f"{process}: {ours.keys() - known}"
    for name, value in ours.items():
        if name not in BESIDE_THE_CLASSES:
            monkeypatch.setenv(name, value)
    return settings()


def test_every_variable_of_the_cluster_is_a_setting(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, container in overlay.containers():
        if name not in SERVERS:
            with monkeypatch.context() as patch:
                read(name, overlay.environment(container), patch)


def test_every_variable_of_compose_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, environment in composed():
        with monkeypatch.context() as patch:
            read(name, environment, patch)


def test_secrets_are_settings_in_files(overlay: Overlay) -> None:
    known = {PREFIX.lower() + field for settings in PROCESSES.values() for field in settings.model_fields}
    for secret in overlay.of("Secret"):
        assert secret["data"].keys() <= known
    for config in overlay.of("ConfigMap"):
        assert not {name for name in config["data"] if name.lower().endswith(("_key", "_token", "redis_url"))}


def test_every_port_is_one_that_the_process_opens(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(address: str) -> int:
        return int(address.rpartition(":")[2])

    opened: dict[str, Callable[[Any, Any], set[int]]] = {
        "gateway": lambda settings, _: {of(settings.gateway_address), of(settings.metrics_address)},
        "user-consumer": lambda settings, _: {of(settings.metrics_address)},
        "item-consumer": lambda settings, _: {of(settings.metrics_address)},
        "crm": lambda settings, container: {
            of(settings.metrics_address),
            of(container["command"][container["command"].index("--address") + 1]),
        },
        "triton": lambda *_: {triton.HTTP_PORT, triton.GRPC_PORT, triton.METRICS_PORT},
    }
    for name, ports in opened.items():
        (container,) = (each for each in overlay.pods()[name]["spec"]["containers"] if "ports" in each)
        with monkeypatch.context() as patch:
            settings = read(name, overlay.environment(container), patch)
        assert {port["containerPort"] for port in container["ports"]} == ports(settings, container), name


def test_files_that_settings_name_are_mounted(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        for variable, value in overlay.environment(container).items():
            if value.startswith("/") and name not in ("triton", *SERVERS) and not variable.endswith("SECRETS_DIR"):
                assert any(Path(value).is_relative_to(mount) for mount in mounts), (name, variable)


def test_topics_are_made_under_their_names_and_keep_what_they_must(render: Callable[[str], Overlay]) -> None:
    (command,) = compose()["services"]["topics"]["command"]
    (container,) = render("dev").pods()["topics"]["spec"]["containers"]
    for script in (command, container["args"][0]):
        assert set(script.split(" in ")[1].split(";")[0].split()) == set(TOPICS)
        configs = dict(re.findall(r"--entity-name (\S+) --add-config (\S+)", script))
        assert configs.keys() == {DELETION_TOPIC, DEAD_LETTER_TOPIC}
        assert configs[DELETION_TOPIC] == "retention.ms=-1"
        name, size = configs[DEAD_LETTER_TOPIC].split("=")
        assert name == "max.message.bytes"
        assert int(size) >= KAFKA_MESSAGE_BYTES + 10_000  # docs/streaming.md


def test_each_milvus_that_we_start_writes_its_segments_alike(render: Callable[[str], Overlay]) -> None:
    """The local one imports what only its own environment has: it is read as text."""
    module = ast.parse((ROOT / "deploy/local/milvus_server.py").read_text())
    local = next(
        ast.literal_eval(line.value)
        for line in module.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "LARGE_SEGMENTS"
    )
    assert local.items() <= compose()["services"]["milvus"]["environment"].items()
    dev = render("dev")
    (container,) = dev.pods()["milvus"]["spec"]["containers"]
    assert local.items() <= dev.environment(container).items()
