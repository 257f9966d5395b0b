"""What campaigns tell Prometheus: the newest run of each, without words that have no end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from crm.metrics import Metrics
from crm.state import CampaignState, Push, PushedItem


def begin(state: CampaignState, run_id: str, campaign: str, started_ms: int, *user_ids: str) -> None:
    state.begin(run_id, campaign, "digest", started_ms)
    state.select(run_id, user_ids)


def test_the_newest_run_of_each_campaign_is_told(tmp_path: Path) -> None:
    metrics = Metrics()
    users = metrics.registry.get_sample_value
    with closing(CampaignState(tmp_path)) as state:
        begin(state, "bread-1", "bread", 1_000, "a", "b", "c", "d")
        metrics.read(tmp_path)
        assert users("baguni_campaign_users", {"campaign": "bread", "where": "run", "state": "selected"}) == 4

        state.discard("bread-1")
        begin(state, "bread-2", "bread", 5_000, "a", "b", "c")
        begin(state, "milk-1", "milk", 3_000, "a")
        push = Push("a", (PushedItem("rye", 1.0),), "r1", cold_start=False)
        state.prepare("bread-2", [push], {"b": "not generated: one reason", "c": "not generated: another"})
        metrics.read(tmp_path)

    def told(campaign: str, state: str) -> float | None:
        return users("baguni_campaign_users", {"campaign": campaign, "where": "run", "state": state})

    assert (told("bread", "prepared"), told("bread", "skipped"), told("bread", "selected")) == (1, 2, None)
    assert told("milk", "selected") == 1
    assert users("baguni_campaign_run_started_seconds", {"campaign": "bread"}) == 5


def test_a_state_without_runs_tells_nothing(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.read(tmp_path)
    assert [sample for family in metrics.registry.collect() for sample in family.samples] == []
