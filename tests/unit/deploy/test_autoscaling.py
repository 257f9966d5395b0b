"""Autoscalers ask for metrics that there are, and requests are derived from numbers that were measured."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from server.telemetry.metrics import Metrics as GatewayMetrics
from streaming.metrics import Metrics as StreamingMetrics
from tests.manifests import KUBERNETES, ROOT, Overlay, tool

TRITON_METRICS = {"nv_inference_queue_duration_us", "nv_inference_request_success"}  # the integration tests ask Triton
ROW = re.compile(r'(\w+)\.json[:,] "([^"]+)"(?:: ([\d.]+))?')


def rules() -> dict[str, str]:
    """Metric → its query, as the adapter makes it for the pods of a namespace."""
    listed = yaml.safe_load((KUBERNETES / "autoscaling/adapter.yaml").read_text())["rules"]["custom"]
    return {
        rule["name"]["as"]: rule["metricsQuery"]
        .replace("<<.Series>>", rule["seriesQuery"].split("{")[0])
        .replace("<<.LabelMatchers>>", 'namespace="baguni",pod=~"a|b"')
        .replace("<<.GroupBy>>", "pod")
        for rule in listed
    }


def our_metrics() -> set[str]:
    return {family.name for metrics in (GatewayMetrics(), StreamingMetrics()) for family in metrics.registry.collect()}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_metric_that_scales_has_a_rule(render: Callable[[str], Overlay], name: str) -> None:
    asked = {
        metric["pods"]["metric"]["name"]
        for scaler in render(name).of("HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
    }
    assert asked == rules().keys()


def test_rules_are_made_of_metrics_that_exist() -> None:
    known = our_metrics() | TRITON_METRICS
    for query in rules().values():
        named = set(re.findall(r"\b((?:baguni|nv)_\w+)\{", query))
        assert named
        assert named <= known


def test_rules_are_promql(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    recorded = [{"record": f"adapter:{name}", "expr": query} for name, query in rules().items()]
    file.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": recorded}]}))
    done = subprocess.run([tool("promtool"), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(recorded)} rules found" in done.stdout


def comments() -> str:
    """Of all manifests; one that goes on in the next line is one."""
    text = "\n".join(path.read_text() for path in sorted(KUBERNETES.rglob("*.yaml")))
    return re.sub(r"\n\s*# ", " ", text)


def test_numbers_in_comments_are_those_of_the_benchmarks() -> None:
    found = ROW.findall(comments())
    assert len(found) >= 8
    for name, what, value in found:
        rows = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"]
        (row,) = (row for row in rows if row["what"] == what)
        if value:
            digits = len(value.partition(".")[2])
            assert round(row["value"], digits) == float(value), what


@pytest.mark.parametrize("name", ["gateway", "user-consumer", "crm", "triton", "item-consumer"])
def test_every_request_says_where_it_comes_from(name: str) -> None:
    text = (KUBERNETES / f"base/{name}.yaml").read_text()
    for part in text.split("resources:\n")[1:]:
        if "cpu: 10m" not in part.split("limits")[0]:  # making two folders
            assert ROW.search(re.sub(r"\n\s*# ", " ", part.split("requests:")[0]))
