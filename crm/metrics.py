"""What campaigns say of themselves to Prometheus. No label is a user, an item or anything else without an end.

A run is a job, which is gone before anybody has read it: what it did stands in the state, and `baguni crm serve` tells it.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from crm.state import CampaignState


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.users = Gauge(
            "baguni_campaign_users",
            "Users of each campaign's newest run, by their state in the run, and at each sink.",
            ["campaign", "where", "state"],
            registry=registry,
        )
        self.started = Gauge(
            "baguni_campaign_run_started_seconds",
            "When each campaign's newest run began, in seconds since 1970.",
            ["campaign"],
            registry=registry,
        )
        self.content = Counter(
            "baguni_content_answers",
            "Answers of Connected Content, by whose items they had: generated, popular.",
            ["source"],
            registry=registry,
        )

        self.restarts = Counter(
            "baguni_background_restarts",
            "Times that a task beside the requests failed or ended and was started again.",
            ["task"],
            registry=registry,
        )

    def read(self, folder: Path) -> None:
        """Tell what stands in the state of a folder now."""
        with closing(CampaignState(folder)) as state:
            newest = {run.campaign: run for run in reversed(state.runs())}
            counts = {campaign: state.counts(run.run_id) for campaign, run in newest.items()}
        self.users.clear()
        for campaign, run in newest.items():
            self.started.labels(campaign).set(run.started_ms / 1000)
            for where, states in counts[campaign].items():
                for state_and_reason, users in states.items():
                    self.users.labels(campaign, where, state_and_reason.partition(":")[0]).inc(users)
