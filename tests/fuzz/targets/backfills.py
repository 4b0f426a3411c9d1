"""Any invocation of the analytics function is a scheduled one, a range with zones, or refused by name."""

import json

from campaign_jobs.analytics.backfill import InvalidBackfill, backfill_of


def run(data: bytes) -> None:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        # Lambda hands over JSON only.
        return
    if not isinstance(event, dict):
        return
    try:
        backfill = backfill_of(event)
    except InvalidBackfill as error:
        assert "backfill" in str(error)
        return
    if backfill is not None:
        assert backfill.begin.utcoffset() is not None
        assert backfill.begin < backfill.end
