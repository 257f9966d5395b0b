"""The overlays as kubectl renders them, and what in them is easier to ask of Python than of YAML."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "dev", "object-store")
WORKLOADS = ("Deployment", "StatefulSet", "CronJob", "Job")
SERVERS = ("redis", "kafka", "milvus", "topics")  # of the dev overlay; everything else is ours

Object = Mapping[str, Any]
TRITON_METRICS = frozenset(  # tests/integration/test_exposed_metrics.py finds them in a running one
    f"nv_inference_{name}"
    for name in ("request_success", "request_failure", "queue_duration_us", "compute_infer_duration_us")
)

MILVUS_METRICS = frozenset(  # found in a running one, too
    f"milvus_{name}"
    for name in (
        "proxy_req_count",
        "proxy_sq_latency_bucket",
        "querynode_sq_queue_latency_bucket",
        "querynode_sq_core_latency_bucket",
        "datacoord_index_task_count",
        "datacoord_segment_num",
        "proxy_insert_vectors_count",
    )
) | {"process_resident_memory_bytes"}


def tool(name: str) -> Path:
    """A program out of a Debian package; skips the test where `make tools` could not have it."""
    path = ROOT / ".venv-tools/usr/bin" / name
    if not path.is_file():
        pytest.skip(f"no {path.relative_to(ROOT)}: `make tools` unpacks it where there is apt-get")
    return path


@cache
def kustomize(folder: Path, kubectl: Path) -> tuple[Object, ...]:
    """What a folder is rendered to."""
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


class Overlay:
    """The objects of one overlay."""

    def __init__(self, name: str, objects: tuple[Object, ...]) -> None:
        self.name, self.objects = name, objects

    def of(self, *kinds: str) -> list[Object]:
        """Those of some kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def names(self, kind: str) -> set[str]:
        """Of all objects of a kind."""
        return {found["metadata"]["name"] for found in self.of(kind)}

    def named(self, kind: str, name: str) -> Object:
        """One object."""
        return next(found for found in self.of(kind) if found["metadata"]["name"] == name)

    def pods(self) -> dict[str, Object]:
        """Workload's name → template of its pods."""
        return {found["metadata"]["name"]: template(found) for found in self.of(*WORKLOADS)}

    def containers(self) -> Iterator[tuple[str, Object]]:
        """(workload's name, container), those that run first included."""
        for name, pod in self.pods().items():
            for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
                yield name, container

    def environment(self, container: Object) -> dict[str, str]:
        """What a container's process finds, secrets left out; a pod's name is `pod-0`."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", ()):
            value = "pod-0" if "valueFrom" in variable else variable["value"]
            found[variable["name"]] = value.replace("$(POD_NAME)", "pod-0")
        return found

    def selected(self, labels: Mapping[str, str]) -> list[str]:
        """The workloads whose pods carry the labels."""
        return [name for name, pod in self.pods().items() if labels.items() <= pod["metadata"]["labels"].items()]


def template(workload: Object) -> Object:
    """Of a workload's pods."""
    spec: Object = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    pod: Object = spec["template"]
    return pod


def rendered(name: str) -> Overlay:
    """An overlay, by kubectl."""
    return Overlay(name, kustomize(KUBERNETES / "overlays" / name, tool("kubectl")))
