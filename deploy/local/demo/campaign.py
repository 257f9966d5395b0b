"""The demo's campaign: what households get pushed next, into a Braze on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from baguni.domain.errors import BaguniError
from baguni.settings import Endpoints
from deploy.local.braze_process import KEY, BrazeProcess, braze_process

PREFIX = "baguni_item"


def push_campaign(endpoints: Endpoints, user_ids: Sequence[str], items_per_user: int) -> dict[str, list[str]]:
    """Run a campaign for these users. Returns what Braze knows to push to each. Raises BaguniError if it fails."""
    with tempfile.TemporaryDirectory() as name, braze_process() as braze:
        folder = Path(name)
        (folder / "users.csv").write_text("user_id\n" + "\n".join(user_ids) + "\n")
        campaign = {
            "name": "demo",
            "items_per_user": items_per_user,
            "audience": {"file": {"path": "users.csv"}},
            "sinks": [{"braze": {"url": braze.url, "attributes": PREFIX}}],
        }
        (folder / "demo.yaml").write_text(yaml.safe_dump(campaign))
        settings = {"BAGUNI_CRM_STATE": str(folder / "state"), "BAGUNI_CRM_BRAZE_KEY": KEY}
        command = [sys.executable, "-m", "baguni.cli", "crm", "run", str(folder / "demo.yaml")]
        environment = {**os.environ, **endpoints.environment(), **settings}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BaguniError(f"`baguni crm run` failed: {done.stderr.strip()}")
        return {user_id: _pushed(braze, user_id) for user_id in user_ids}


def _pushed(braze: BrazeProcess, user_id: str) -> list[str]:
    attributes = braze.user(user_id).get("attributes", {})
    return [attributes[f"{PREFIX}_{place}"] for place in range(1, len(attributes) + 1)]
