"""Which page a click, a cart or an order came from, counted for dashboards: clicks over pages is a click-through rate. What
experiments conclude is made of the events themselves (`baguni experiment`), not of this.
"""

from __future__ import annotations

from collections.abc import Iterable

from baguni.domain.errors import InvalidInputError
from baguni.domain.events import LOOKED_AT, UserEvents
from baguni.domain.exposure_token import Exposure
from baguni.domain.history import HistoryEvent
from baguni.domain.signed_tokens import TokenSigner
from baguni.exposition import BoundedNames
from streaming.metrics import Metrics

MAX_PLACEMENTS, MAX_RELEASES = 50, 200  # that are told apart


class Attribution:
    """Counts events by the placement and the release of the page that their token names."""

    def __init__(self, metrics: Metrics, signer: TokenSigner, placements: Iterable[str] = ()) -> None:
        self._metrics, self._signer = metrics, signer
        self._placement, self._release = BoundedNames(MAX_PLACEMENTS, placements), BoundedNames(MAX_RELEASES)

    def count(self, event: UserEvents) -> None:
        """An event that is new, and has a token: a click, a cart or an order, whatever number of lines it has."""
        first = event.changes[0]
        assert isinstance(first, HistoryEvent), "nothing else has a token"
        try:
            page = Exposure.decode(event.exposure_token, self._signer)
        except InvalidInputError:
            self._metrics.unreadable_tokens.inc()
            return
        if not page.request_id.startswith(LOOKED_AT):
            labels = first.action.name.lower(), self._placement(page.placement), self._release(page.release_id)
            self._metrics.attributed.labels(*labels).inc()
