"""Remove users who asked for it from the state of campaigns: what was prepared for them, what they were pushed, what a sink
knows of them.

The list of forgotten users is read before and after every run, and by `baguni crm serve`; each entry counts up to the time of
its deletion, however often it is read, so what a user has got who has come back since stays.
"""

from __future__ import annotations

import logging
import math
from contextlib import closing

from baguni.domain.errors import InvalidInputError
from baguni.stores.forgotten import OVERLAP_MS, ForgottenUsers
from baguni.stores.personal_data import NotSearchedError
from baguni.stores.redis_client import connect
from crm.settings import CrmSettings
from crm.state import CampaignState

log = logging.getLogger(__name__)


def forget_listed(state: CampaignState, forgotten: ForgottenUsers) -> int:
    """Forget everybody who was added to the list since the last call, and again those of OVERLAP_MS before. The caller holds
    the state's lock. Returns the number of those that are new. Raises UnavailableError."""
    num_users, known = 0, state.forgotten_until
    position = max(known - OVERLAP_MS, 0)
    while entries := forgotten.since(position):
        position = entries[-1].position
        state.forget({entry.user_id: entry.until_ms for entry in entries}, max(position, known))
        num_users += sum(entry.position > known for entry in entries)
    return num_users


def forget_unless_running(settings: CrmSettings) -> None:
    """Forget everybody on the list, unless a campaign runs: it does so itself. Raises UnavailableError."""
    with closing(CampaignState(settings.crm_state)) as state, connect(settings.redis_url) as client:
        try:
            with state.lock(wait_s=0):
                forget_listed(state, ForgottenUsers(client))
        except InvalidInputError:
            log.info("a campaign is running: it forgets users at its end")


def personal_data(user_id: str, erase: bool) -> list[str]:
    """Return what the state of campaigns has of a user, and remove it if asked to. Raises InvalidInputError while a campaign
    runs, and NotSearchedError."""
    settings = CrmSettings()
    if not settings.crm_state.is_dir():
        raise NotSearchedError(f"the folder {settings.crm_state} does not exist here")
    with closing(CampaignState(settings.crm_state)) as state:
        found = [f"{settings.crm_state}: {count} rows of {table}" for table, count in state.rows_of(user_id).items()]
        if erase and found:
            with state.lock():
                state.forget({user_id: math.inf})
    return found
