"""The scheduled jobs at their boundaries."""

import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob
from tests.crash.scenario import Rest, Scenario
from tests.integration.email_campaign import MailCampaign
from tests.integration.fraud_campaign import Campaign as WatchedCampaign

TICK: Final = json.loads((Path(__file__).parent.parent / "events/scheduled.json").read_text(encoding="utf-8"))


def _counted(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    campaign.change_user(user, verified_at="2026-03-01 12:30+00", created_at="2026-03-01 12:00+00")
    # A count of an hour that is empty by now.
    connection.execute(
        "INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups)"
        " VALUES (%s, '2026-03-01 13:00+00', 7)",
        (campaign.id,),
    )
    return [TICK]


def _counts(rest: Rest) -> None:
    assert rest.rows(
        "SELECT extract(hour FROM bucket AT TIME ZONE 'UTC'), new_signups, email_verifications"
        " FROM campaign_jobs.campaign_metrics"
    ) == [(12, 1, 1)]


def _backfilled(connection: Connection) -> list[Any]:
    _counted(connection)
    return [{"backfill": {"from": "2026-03-01T12:00:00+00:00", "to": "2026-03-01T15:00:00+00:00"}}]


def _suspicious(connection: Connection, policy: str) -> WatchedCampaign:
    """Twelve people with one device, each referred by the one before, and one blocked for something that is gone."""
    campaign = WatchedCampaign(connection, policy={"policy": policy})
    users = [campaign.user(ip="203.0.113.7", device="a device") for _ in range(12)]
    for referrer, referred in pairwise(users):
        campaign.refer(referrer, referred, timedelta(minutes=1))
    innocent = campaign.user()
    campaign.reward(innocent)
    connection.execute(
        "INSERT INTO campaign_jobs.fraud_cases"
        " (campaign_id, user_id, holding, blocking, blocked_from, risk_score, evidence, rules_version)"
        " VALUES (%s, %s, true, true, 'verified', 90, '[]', '1')",
        (campaign.id, innocent),
    )
    campaign.change(innocent, status="blocked")
    return campaign


def _first_run(connection: Connection) -> list[Any]:
    _suspicious(connection, "block")
    return [TICK]


def _later_run(connection: Connection) -> list[Any]:
    """Others come after the first run, and what an open case says changes."""
    campaign = _suspicious(connection, "hold")
    database = Database(connection.info.dsn)
    FraudJob(database).run({})
    database.close()
    referrer = campaign.user(device="a device")
    campaign.refer(referrer, campaign.user(device="a device", email="someone@mailinator.com"))
    return [TICK]


def _cases(rest: Rest) -> None:
    ((opened, retracted),) = rest.rows(
        "SELECT count(*) FILTER (WHERE status = 'open'), count(*) FILTER (WHERE status = 'retracted')"
        " FROM campaign_jobs.fraud_cases"
    )
    assert opened >= 10
    assert retracted == 1
    assert rest.rows("SELECT count(*) FROM campaign_jobs.job_watermarks") == [(1,)]


def _blocks(rest: Rest) -> None:
    _cases(rest)
    ((blocked,),) = rest.rows("SELECT count(*) FROM campaign_jobs.waitlist_users WHERE status = 'blocked'")
    assert blocked >= 10


SCENARIOS = [
    Scenario(name="analytics: a run", function="analytics", source="schedule", seed=_counted, expect=_counts),
    Scenario(
        name="analytics: a backfill",
        function="analytics",
        source="schedule",
        seed=_backfilled,
        expect=_counts,
    ),
    Scenario(
        name="fraud: a run that blocks",
        function="fraud",
        source="schedule",
        seed=_first_run,
        expect=_blocks,
    ),
    Scenario(
        name="fraud: a run over what changed",
        function="fraud",
        source="schedule",
        seed=_later_run,
        expect=_cases,
    ),
]
