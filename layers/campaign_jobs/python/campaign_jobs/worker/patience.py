"""Waiting for a row that an event names and that is not there yet: services publish before they commit."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Later, Rejected

SHORTEST_WAIT: Final = timedelta(seconds=1)
LONGEST_WAIT: Final = timedelta(minutes=1)


def wait_for_missing(delivery: Delivery[Any], what: str, patience: timedelta) -> Later | Rejected:
    """Come back later, in growing steps, until `patience` after the event was first received; then give up."""
    waited = datetime.now(UTC) - delivery.first_received_at
    if waited >= patience:
        return Rejected(f"the {what} is not there, after waiting {_shown(patience)}")
    # Half of the time waited so far, so that a row that comes soon is found soon.
    wait = min(max(waited / 2, SHORTEST_WAIT), LONGEST_WAIT, patience - waited)
    return Later(f"the {what} is not there yet", wait)


def _shown(patience: timedelta) -> str:
    seconds = patience.total_seconds()
    units: Sequence[tuple[int, str]] = ((3600, "h"), (60, "min"), (1, "s"))
    for size, unit in units:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
