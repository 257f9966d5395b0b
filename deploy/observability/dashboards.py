"""The dashboards, from a table of panels:

python -m deploy.observability.dashboards      writes grafana/dashboards/*.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.observability.objectives import OBJECTIVES

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 12, 8, 2


@dataclass(frozen=True)
class Panel:
    """A graph: `queries` are PromQL with what each line is called; `unit` is one of Grafana's names."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _quantiles(metric: str, by: str, *shares: float) -> tuple[tuple[str, str], ...]:
    legend = f"{{{{{by}}}}} " if by else ""
    grouped = f"le, {by}" if by else "le"
    return tuple(
        (
            f"histogram_quantile({share}, sum by ({grouped}) (rate({metric}[$__rate_interval])))",
            f"{legend}p{share * 100:g}",
        )
        for share in shares
    )


def _rate(metric: str, by: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"sum by ({by}) (rate({metric}[$__rate_interval]))", " ".join(f"{{{{{label}}}}}" for label in by.split(", "))),
    )


def _a_request(part: str) -> tuple[tuple[str, str], ...]:
    waited, answered = (
        f"sum by (model) (rate({name}[$__rate_interval]))" for name in (part, "nv_inference_request_success")
    )
    return ((f"{waited} / {answered}", "{{model}}"),)


def _a_page(metric: str, by: str) -> tuple[tuple[str, str], ...]:
    """Over an hour: what pages lead to comes later than they do, and is rare."""
    counted, pages = (f"sum by ({by}) (rate({name}[1h]))" for name in (metric, "baguni_pages_total"))
    return ((f"{counted} / {pages}", f"{{{{{by}}}}}"),)


def _led_to(action: str) -> str:
    return f'baguni_attributed_events_total{{action="{action}"}}'


RECOMMEND = 'baguni_request_duration_seconds_bucket{method="Recommend", code="OK"}'
DASHBOARDS = {
    "overview": (
        "baguni: overview",
        (
            *(
                Panel(
                    f"{objective.title}: budget's pace",
                    f"What is bad over what an objective of {objective.target:.1%} allows: above 1 its budget does not last.",
                    "none",
                    tuple((f"{objective.recorded}_{w} / {1 - objective.target:.6g}", w) for w in ("5m", "1h", "6h")),
                )
                for objective in OBJECTIVES
            ),
            Panel(
                "Recommends",
                "Answered, by code.",
                "reqps",
                _rate('baguni_request_duration_seconds_count{method="Recommend"}', "code"),
            ),
            Panel("Recommend takes", "From an RPC's arrival to its answer.", "s", _quantiles(RECOMMEND, "", 0.5, 0.99)),
            Panel(
                "Alerts that fire",
                "By severity.",
                "none",
                (('count by (severity) (ALERTS{alertstate="firing"})', "{{severity}}"),),
            ),
        ),
    ),
    "quality": (
        "baguni: online quality",
        (
            *(
                Panel(f"{what} a page, by {by}", f"{about}, over pages.", "percentunit", _a_page(_led_to(action), by))
                for what, action, about in (
                    ("Clicks", "clicked", "Clicks that name a page as what led to them"),
                    ("Carts", "carted", "What was put into the cart from a page"),
                    ("Orders", "ordered", "Orders that name a page as what led to them"),
                )
                for by in ("placement", "release")
            ),
            Panel("Pages", "Served, by placement.", "reqps", _rate("baguni_pages_total", "placement")),
            Panel(
                "Items on a page",
                "By placement: lists that rules leave too little are short.",
                "none",
                _a_page("baguni_page_items_total", "placement"),
            ),
            Panel(
                "Events whose page is unknown",
                "Their token is damaged: a client sends something else.",
                "cps",
                (("sum(rate(baguni_unreadable_exposure_tokens_total[$__rate_interval]))", "unreadable"),),
            ),
        ),
    ),
    "gateway": (
        "baguni: gateway",
        (
            Panel(
                "Requests",
                "Every method, by code.",
                "reqps",
                _rate("baguni_request_duration_seconds_count", "method, code"),
            ),
            Panel(
                "A stage waits, p99",
                "For Redis (history), Triton (encode, score, generate), Milvus (search, similar); exact: in the gateway.",
                "s",
                _quantiles("baguni_stage_duration_seconds_bucket", "stage", 0.99),
            ),
            Panel(
                "Degraded lists",
                "Lists that not everything answered for, by tier.",
                "reqps",
                _rate("baguni_degraded_total", "tier"),
            ),
            Panel(
                "Searches",
                "Of nearest items, by who answered: Milvus, or the gateway (exact, fallback, refused, filtered).",
                "reqps",
                _rate("baguni_searches_total", "path"),
            ),
            Panel("Refused", "Before they were read, by reason.", "reqps", _rate("baguni_refused_total", "reason")),
            Panel(
                "Event loop",
                "How late it is, by process.",
                "s",
                (("max by (instance) (baguni_event_loop_lag_seconds)", "{{instance}}"),),
            ),
            Panel(
                "In flight",
                "Requests being answered.",
                "none",
                (("sum by (instance) (baguni_requests_in_flight)", "{{instance}}"),),
            ),
            Panel("Exposures", "Pages told to Kafka, or dropped.", "reqps", _rate("baguni_exposures_total", "outcome")),
            Panel("Written down", "Requests for replay.", "reqps", _rate("baguni_captured_total", "outcome")),
        ),
    ),
    "triton": (
        "baguni: Triton",
        (
            Panel(
                "Inferences",
                "Requests that were answered, by model.",
                "reqps",
                _rate("nv_inference_request_success", "model"),
            ),
            Panel("Failures", "By model.", "reqps", _rate("nv_inference_request_failure", "model")),
            Panel(
                "A request queues",
                "In Triton, before its model has it.",
                "µs",
                _a_request("nv_inference_queue_duration_us"),
            ),
            Panel("A request computes", "In the model.", "µs", _a_request("nv_inference_compute_infer_duration_us")),
        ),
    ),
    "milvus": (
        "baguni: Milvus",
        (
            Panel(
                "Searches",
                "At its proxy, by status; total is all of them.",
                "reqps",
                _rate('milvus_proxy_req_count{function_name="Search"}', "status"),
            ),
            Panel(
                "A search takes",
                "At its proxy, from arrival to answer.",
                "ms",
                _quantiles('milvus_proxy_sq_latency_bucket{query_type="search"}', "", 0.5, 0.99),
            ),
            Panel(
                "A search waits",
                "For a thread: more searches than processors.",
                "ms",
                _quantiles('milvus_querynode_sq_queue_latency_bucket{query_type="search"}', "", 0.5, 0.99),
            ),
            Panel(
                "A search computes",
                "In the graphs of its segments.",
                "ms",
                _quantiles('milvus_querynode_sq_core_latency_bucket{query_type="search"}', "", 0.5, 0.99),
            ),
            Panel(
                "Index tasks",
                "Segments by whether they have their graph. While some wait, searches are slow, and find less.",
                "none",
                (("sum by (index_task_status) (milvus_datacoord_index_task_count)", "{{index_task_status}}"),),
            ),
            Panel(
                "Segments",
                "By state: each search walks every graph of its collection.",
                "none",
                (("sum by (segment_state) (milvus_datacoord_segment_num)", "{{segment_state}}"),),
            ),
            Panel(
                "Rows inserted",
                "Of both spaces.",
                "cps",
                (("sum(rate(milvus_proxy_insert_vectors_count[$__rate_interval]))", "rows"),),
            ),
            Panel(
                "Memory",
                "Of its process.",
                "bytes",
                (('process_resident_memory_bytes{job="milvus"}', "{{instance}}"),),
            ),
        ),
    ),
    "streaming": (
        "baguni: streaming",
        (
            Panel(
                "An event is seen after",
                "From its own time to when Recommend sees it; of each batch the longest.",
                "s",
                _quantiles("baguni_event_visible_lag_seconds_bucket", "kind", 0.5, 0.99),
            ),
            Panel(
                "Behind",
                "Records that are not applied yet.",
                "none",
                (("sum by (topic) (baguni_consumer_lag_records)", "{{topic}}"),),
            ),
            Panel("Records", "Applied.", "cps", _rate("baguni_records_total", "topic")),
            Panel(
                "Changes",
                "What became of what was to change in histories.",
                "cps",
                _rate("baguni_history_changes_total", "outcome"),
            ),
            Panel("Dead letters", "By reason.", "cps", _rate("baguni_dead_letters_total", "reason")),
            Panel(
                "Waits and rewinds",
                "Servers that were away; partitions read again.",
                "cps",
                (
                    *_rate("baguni_consumer_waits_total", "part"),
                    ("sum(rate(baguni_rewinds_total[$__rate_interval]))", "rewinds"),
                ),
            ),
            Panel(
                "A stored history",
                "Bytes in Redis; of each batch the largest.",
                "bytes",
                _quantiles("baguni_history_bytes_bucket", "", 0.5, 0.99),
            ),
        ),
    ),
    "campaigns": (
        "baguni: campaigns",
        (
            Panel(
                "Users of the newest run",
                "By campaign and by what became of their lists: how far a run is, and whom quiet rules left out.",
                "none",
                (('sum by (campaign, state) (baguni_campaign_users{where="run"})', "{{campaign}} {{state}}"),),
            ),
            Panel(
                "Delivered",
                "Users of the newest run at each sink. What is unknown may have arrived: `baguni crm show` names it.",
                "none",
                (
                    (
                        'sum by (campaign, where, state) (baguni_campaign_users{where!="run"})',
                        "{{campaign}} {{where}} {{state}}",
                    ),
                ),
            ),
            Panel(
                "Since the newest run began",
                "A campaign that should run daily and is older than a day did not begin.",
                "s",
                (("time() - baguni_campaign_run_started_seconds", "{{campaign}}"),),
            ),
            Panel(
                "Connected Content",
                "Answers, by whose items.",
                "reqps",
                _rate("baguni_content_answers_total", "source"),
            ),
        ),
    ),
    "releases": (
        "baguni: releases",
        (
            Panel(
                "Processes that serve",
                "By release.",
                "none",
                (("sum by (release) (baguni_release_info)", "{{release}}"),),
            ),
            Panel("Recommend takes, p99", "A switch is seen here first.", "s", _quantiles(RECOMMEND, "", 0.99)),
            Panel("Degraded lists", "By tier.", "reqps", _rate("baguni_degraded_total", "tier")),
            Panel(
                "Models that fail",
                "By model, which has the release in its name.",
                "reqps",
                _rate("nv_inference_request_failure", "model"),
            ),
        ),
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    """As Grafana imports it."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"baguni-{name}",
        "title": title,
        "tags": ["baguni"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": list(_panels(panels)),
    }


def _panels(panels: tuple[Panel, ...]) -> Iterator[dict[str, Any]]:
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        yield {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.about,
            "datasource": SOURCE,
            "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8}}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                for place, (query, legend) in enumerate(panel.queries)
            ],
        }


def render(name: str) -> str:
    """As a file."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(render(each))
