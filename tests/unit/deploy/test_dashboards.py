"""Dashboards ask for what is there, in PromQL that Prometheus reads."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from crm.metrics import Metrics as CampaignMetrics
from deploy.observability.dashboards import DASHBOARDS, FOLDER, render
from server.telemetry.metrics import Metrics as GatewayMetrics
from streaming.metrics import Metrics as ConsumerMetrics
from tests.conftest import repository
from tests.manifests import MILVUS_METRICS, TRITON_METRICS, tool

RULES = repository() / "deploy/observability/prometheus"
PROMETHEUS = {"up", "ALERTS"}


def expressions() -> list[str]:
    """Every query of the dashboards and the rules."""
    found = [target["expr"] for name in DASHBOARDS for panel in read(name)["panels"] for target in panel["targets"]]
    for path in RULES.glob("*.yaml"):
        found += [rule["expr"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    return found


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def exposed() -> set[str]:
    """What our processes tell, and what the rules record."""
    names = set()
    for metrics in (GatewayMetrics(), ConsumerMetrics(), CampaignMetrics()):
        for family in metrics.registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
    groups = yaml.safe_load((RULES / "objectives.yaml").read_text())["groups"]
    return names | {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def metric_names(expression: str) -> set[str]:
    without = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|ignoring|on) \([^)]*\)|group_left", "", expression)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", without))
    return {word for word in words if "_" in word or word in PROMETHEUS} - {"histogram_quantile", "count_over_time"}


def test_every_metric_is_one_that_somebody_tells() -> None:
    known = exposed() | TRITON_METRICS | MILVUS_METRICS | PROMETHEUS
    for expression in expressions():
        assert metric_names(expression) <= known, expression


def test_what_is_found_in_an_expression() -> None:
    asked = 'histogram_quantile(0.9, sum by (le, stage) (rate(baguni_stage_duration_seconds_bucket{a="b_c"}[5m]))) > up'
    assert metric_names(asked) == {"baguni_stage_duration_seconds_bucket", "up"}


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == render(name), "run `make observability`"
    panels = read(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_dashboards_are_whose_they_are() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == DASHBOARDS.keys()
    assert len({read(name)["uid"] for name in DASHBOARDS}) == len(DASHBOARDS)
    source = yaml.safe_load((FOLDER.parent / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for name in DASHBOARDS for panel in read(name)["panels"]} == {source["uid"]}
