"""compose.yaml: by the specification's schema, and by what a schema cannot know."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml

from tests.manifests import ROOT, tool
from tests.unit.deploy.test_containers import stages

FOLDER = ROOT / "deploy"
FILES = ("compose.yaml", "compose.gpu.yaml")
OURS = ("triton", "gateway", "user-consumer", "item-consumer", "trainer")


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read("compose.yaml")["services"]
    return found


@pytest.fixture(scope="module")
def schema() -> Any:
    """Compose's own, as the package check-jsonschema carries it."""
    file = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", FILES)
def test_it_is_what_compose_takes(schema: Any, name: str) -> None:
    jsonschema.validate(read(name), schema)


def test_a_key_that_compose_does_not_know_is_found(schema: Any) -> None:
    content = read("compose.yaml")
    content["services"]["gateway"]["depends"] = ["redis"]
    with pytest.raises(jsonschema.ValidationError, match="depends"):
        jsonschema.validate(content, schema)


def test_images_are_pinned_and_ours_are_targets(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", service["image"]), name
        assert ("build" in service) == (name in OURS)
        if "build" in service:
            assert service["image"].split(":")[0] == f"baguni-{service['build']['target']}"
            assert service["build"]["target"] in stages()
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_cluster_has_the_same_images(services: dict[str, Any]) -> None:
    text = (FOLDER / "kubernetes/base/kustomization.yaml").read_text()
    tags = {image["name"]: image["newTag"] for image in yaml.safe_load(text)["images"]}
    assert {name.removeprefix("baguni-") for name in tags} <= stages().keys()
    for name in OURS:
        image, tag = services[name]["image"].split(":")
        assert tags[image] == tag


def test_who_waits_waits_for_health_or_for_an_end(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ("healthcheck" in services[needed]) != ends, (name, needed)
            assert ("restart" in services[needed]) != ends, (name, needed)


def test_addresses_are_services_that_are_waited_for(services: dict[str, Any]) -> None:
    for name in ("gateway", "user-consumer", "item-consumer"):
        addresses = {
            key: value
            for key, value in services[name]["environment"].items()
            if key.endswith(("_URL", "_URI", "_BOOTSTRAP"))
        }
        hosts = {re.sub(r"^\w+://", "", value).split(":")[0] for value in addresses.values()}
        assert hosts == {"redis", "kafka", "milvus", "triton"}
        assert hosts <= services[name]["depends_on"].keys()


def test_ports_are_published_for_this_machine_only_and_once(services: dict[str, Any]) -> None:
    published = [port.split(":") for service in services.values() for port in service.get("ports", ())]
    assert all(host == "127.0.0.1" for host, _, _ in published)
    assert len({port for _, port, _ in published}) == len(published)


def test_what_serves_of_ours_cannot_write_its_image(services: dict[str, Any]) -> None:
    for name in ("triton", "gateway", "user-consumer", "item-consumer"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def sources(services: dict[str, Any]) -> set[str]:
    """What is mounted: a volume's name, or a path that begins with a dot."""
    return {mount.split(":")[0] for service in services.values() for mount in service.get("volumes", ())} - {"${SHOP"}


def test_volumes_and_mounted_files_exist(services: dict[str, Any]) -> None:
    named = read("compose.yaml")["volumes"].keys()
    for source in sources(services):
        assert source in named or (FOLDER / source).exists() or source.startswith("./observability/"), source


@pytest.mark.skipif(not (FOLDER / "observability").is_dir(), reason="deploy/observability is not there yet")
def test_rules_and_dashboards_are_mounted(services: dict[str, Any]) -> None:
    for source in ("./observability/prometheus", "./observability/grafana"):
        assert source in sources(services)
        assert (FOLDER / source).is_dir()


def test_prometheus_reads_what_is_there(services: dict[str, Any]) -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "config", "--syntax-only", FOLDER / "compose/prometheus.yaml"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jobs = read("compose/prometheus.yaml")["scrape_configs"]
    targets = [target for job in jobs for config in job["static_configs"] for target in config["targets"]]
    ports = {"gateway": "7460", "user-consumer": "7462", "item-consumer": "7462", "triton": "8002", "milvus": "9091"}
    assert targets == [f"{host}:{port}" for host, port in ports.items()]
    assert ports.keys() <= services.keys()
