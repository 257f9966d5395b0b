"""Every alert fires when it should and is quiet when it should be, by promtool; and each has a page in the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability import objectives
from tests.conftest import repository
from tests.manifests import tool

pytestmark = pytest.mark.slow

RULES = repository() / "deploy/observability/prometheus"
REQUESTS = 'baguni_request_duration_seconds_count{method="Recommend", code="OK"}'
FAILED = 'baguni_request_duration_seconds_count{method="Recommend", code="UNAVAILABLE"}'
QUICK = 'baguni_request_duration_seconds_bucket{method="Recommend", code="OK", le="0.2"}'
EVENTS, SEEN = "baguni_event_visible_lag_seconds_count", 'baguni_event_visible_lag_seconds_bucket{le="1.0"}'
TRITON = 'nv_inference_{}{{model="user_encoder_r1"}}'
SUCCESS, FAILURE, QUEUE = (TRITON.format(n) for n in ("request_success", "request_failure", "queue_duration_us"))
CLICKS, PAGES = (
    'baguni_attributed_events_total{action="clicked", placement="home"}',
    'baguni_pages_total{placement="home"}',
)
STEPS = 150
Series = dict[str, str]


def rising(a_step: float) -> str:
    """A counter that grows so much every step, of a minute unless the windows are long."""
    return f"0+{a_step}x{STEPS}"


def steady(value: float) -> str:
    """A gauge."""
    return f"{value}+0x{STEPS}"


def stopped(a_step: float, after: int) -> str:
    """A counter that grows for so many steps, and no more."""
    return f"0+{a_step}x{after} {a_step * after}+0x{STEPS - after}"


def at_pace(bad: str, good: str, share: float) -> Series:
    """A thousand a step, of which so many are bad."""
    return {bad: rising(1000 * share), good: rising(1000 * (1 - share))}


def slow(share: float) -> Series:
    return {REQUESTS: rising(1000), QUICK: rising(1000 * (1 - share))}


def late(share: float) -> Series:
    return {EVENTS: rising(1000), SEEN: rising(1000 * (1 - share))}


def degraded(tier: str, a_step: float) -> Series:
    return {REQUESTS: rising(1000), f'baguni_degraded_total{{tier="{tier}"}}': rising(a_step)}


def release(**processes: int) -> Series:
    return {f'baguni_release_info{{release="{name}"}}': steady(count) for name, count in processes.items()}


# alert → (series when it fires, series when it does not)
CASES: dict[str, tuple[Series, Series]] = {
    "RecommendAvailabilityBurnsFast": (at_pace(FAILED, REQUESTS, 0.02), at_pace(FAILED, REQUESTS, 0.01)),
    "RecommendAvailabilityBurns": (at_pace(FAILED, REQUESTS, 0.007), at_pace(FAILED, REQUESTS, 0.005)),
    "RecommendAvailabilityBurnsSlowly": (at_pace(FAILED, REQUESTS, 0.002), at_pace(FAILED, REQUESTS, 0.0005)),
    "RecommendLatencyBurnsFast": (slow(0.2), slow(0.1)),
    "RecommendLatencyBurns": (slow(0.07), slow(0.05)),
    "RecommendLatencyBurnsSlowly": (slow(0.02), slow(0.005)),
    "FreshnessBurnsFast": (late(0.2), late(0.1)),
    "FreshnessBurns": (late(0.07), late(0.05)),
    "FreshnessBurnsSlowly": (late(0.02), late(0.005)),
    "TargetDown": ({'up{job="gateway"}': steady(0)}, {'up{job="gateway"}': steady(1)}),
    "NoReleaseServed": (release(r1=0), release(r1=2)),
    "ReleasesDiffer": (release(r1=1, r2=1), release(r1=0, r2=2)),
    "ListsDegraded": (degraded("CACHED_LIST", 100), degraded("CACHED_LIST", 20)),
    "MilvusFails": (
        {
            'baguni_searches_total{path="milvus"}': rising(900),
            'baguni_searches_total{path="fallback"}': rising(100),
            'baguni_searches_total{path="remembered"}': rising(9_000),
        },
        {'baguni_searches_total{path="milvus"}': rising(990), 'baguni_searches_total{path="exact"}': rising(500)},
    ),
    "RescoringFails": (degraded("RETRIEVAL_ORDER", 300), degraded("RETRIEVAL_ORDER", 100)),
    "RequestsRefused": (
        {REQUESTS: rising(1000), 'baguni_refused_total{reason="overloaded"}': rising(50)},
        {REQUESTS: rising(1000), 'baguni_refused_total{reason="unauthenticated"}': rising(50)},
    ),
    "EventLoopLate": (
        {'baguni_event_loop_lag_seconds{instance="a"}': steady(0.3)},
        {'baguni_event_loop_lag_seconds{instance="a"}': steady(0.01)},
    ),
    "ExposuresDropped": (
        {'baguni_exposures_total{outcome="dropped"}': rising(1)},
        {'baguni_exposures_total{outcome="sent"}': rising(1)},
    ),
    "ClickThroughFell": (
        {PAGES: rising(1000), CLICKS: stopped(100, 40)},
        {PAGES: rising(1000), CLICKS: rising(100)},
    ),
    "ConsumerBehind": (
        {f'baguni_consumer_lag_records{{topic="baguni.clicks", partition="{n}"}}': steady(30_000) for n in range(2)},
        {'baguni_consumer_lag_records{topic="baguni.clicks", partition="0"}': steady(30_000)},
    ),
    "ConsumerWaits": (
        {'baguni_consumer_waits_total{part="redis"}': rising(6)},
        {'baguni_consumer_waits_total{part="redis"}': steady(6)},
    ),
    "DeadLetters": (
        {'baguni_dead_letters_total{reason="type"}': rising(2)},
        {'baguni_dead_letters_total{reason="type"}': rising(1)},
    ),
    "AttributesLeftOut": (
        {'baguni_left_out_attributes_total{attribute="pack_size", problem="undeclared"}': rising(1)},
        {'baguni_left_out_attributes_total{attribute="pack_size", problem="undeclared"}': steady(2)},
    ),
    "BackgroundTaskFails": (
        {'baguni_background_restarts_total{instance="a",task="items"}': rising(1)},
        {'baguni_background_restarts_total{instance="a",task="items"}': steady(2)},
    ),
    "Quarantined": ({"baguni_quarantined_total": rising(1)}, {"baguni_quarantined_total": steady(2)}),
    "ExperimentArmNotServed": (
        {'baguni_experiment_arms_not_served_total{release="r2"}': rising(1)},
        {'baguni_experiment_arms_not_served_total{release="r2"}': steady(2)},
    ),
    "HistoriesDamaged": ({"baguni_damaged_histories_total": rising(1)}, {"baguni_damaged_histories_total": steady(2)}),
    "Rewound": ({"baguni_rewinds_total": rising(1)}, {"baguni_rewinds_total": steady(3)}),
    "ModelsFail": (at_pace(FAILURE, SUCCESS, 0.05), at_pace(FAILURE, SUCCESS, 0.001)),
    "ModelsQueue": (
        {SUCCESS: rising(100), QUEUE: rising(100 * 80_000)},
        {SUCCESS: rising(100), QUEUE: rising(100 * 800)},
    ),
}
WHEN = {"BurnsSlowly": ("80h", "1h"), "Burns": ("8h", "5m"), "": ("2h", "1m")}  # the moment asked about, and a step


def alert_rules() -> dict[str, dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yaml"))]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def test_each_alert_has_both_cases() -> None:
    assert CASES.keys() == alert_rules().keys()


def test_generated_rules_are_fresh() -> None:
    assert objectives.FILE.read_text() == objectives.render(), "run `make observability`"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "quiet"])
def test_an_alert(name: str, fires: bool, tmp_path: Path) -> None:
    series = CASES[name][0 if fires else 1]
    at, step = next(when for pace, when in WHEN.items() if name.endswith(pace))
    query = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
    unit = {
        "interval": step,
        "input_series": [{"series": metric, "values": values} for metric, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count({query}) or vector(0)",
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }
    test = {
        "rule_files": sorted(map(str, RULES.glob("*.yaml"))),
        "evaluation_interval": step,
        "group_eval_order": ["objectives", "burn-rates", "alerts"],  # what is recorded before who asks for it
        "tests": [unit],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_says_what_it_is_and_has_a_page() -> None:
    pages = re.findall(r"^## (\w+)$", (repository() / "docs/runbook.md").read_text(), re.MULTILINE)
    assert len(pages) == len(set(pages))
    assert set(pages) == alert_rules().keys()
    for name, rule in alert_rules().items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
