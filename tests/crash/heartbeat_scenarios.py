"""Heartbeats at their boundaries: relay publishes them and reports ages, a lane stores them."""

from typing import Any

from campaign_jobs.database.connection import Connection
from campaign_jobs.relay.heartbeats import heartbeat
from tests.crash.relay_scenarios import another_tick_waits
from tests.crash.scenario import Rest, Scenario
from tests.crash.schedule_scenarios import TICK
from tests.crash.unroutable_scenarios import OWNED
from tests.integration.email_campaign import MailCampaign
from tests.integration.test_heartbeats import NOON

STORED = "SELECT consumer_group, partition FROM campaign_jobs.heartbeats WHERE published_at IS NOT NULL"
# A batch that was killed is handed on, and what it held of heartbeats says nothing any more: the next ones do.
LEFT_TO_THE_NEXT = frozenset({("heartbeats", "*")})


def _with_a_mail(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    return [campaign.event("verification", campaign.add_user()), heartbeat(0, NOON)]


def _mailed_and_stored(rest: Rest) -> None:
    assert sorted(rest.outside.mails.values()) == [1]
    assert rest.rows(STORED) == [("job-workers-email", 0)]


def _stored(rest: Rest) -> None:
    assert rest.rows(STORED) == [("job-workers-unroutable", 0)]
    assert not rest.outside.dead_letters


def _a_schedule_that_was_another(connection: Connection) -> list[Any]:
    another_tick_waits(connection)
    connection.execute(
        "INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now())"
    )
    connection.execute(
        "INSERT INTO campaign_jobs.job_schedules (job_type, schedule) VALUES ('analytics', 'rate(1 day)')"
    )
    return [TICK]


def _beaten(rest: Rest) -> None:
    assert rest.beaten == {0}
    assert rest.rows("SELECT count(*), count(published_at) FROM campaign_jobs.heartbeats") == [(5, 0)]
    assert rest.rows("SELECT job_type, schedule FROM campaign_jobs.job_schedules ORDER BY job_type") == [
        ("analytics", "cron(0 * * * ? *)"),
        ("fraud", "disabled"),
    ]


SCENARIOS = [
    Scenario(
        name="heartbeats: one after a mail",
        function="email",
        source="kafka",
        seed=_with_a_mail,
        expect=_mailed_and_stored,
        ignored=LEFT_TO_THE_NEXT,
    ),
    Scenario(
        name="heartbeats: one for whoever reads all",
        function="unroutable",
        source="kafka",
        seed=lambda _: [OWNED, heartbeat(0, NOON)],
        expect=_stored,
        ignored=LEFT_TO_THE_NEXT,
    ),
    Scenario(
        name="heartbeats: published, and ages reported",
        function="relay",
        source="schedule",
        seed=_a_schedule_that_was_another,
        expect=_beaten,
        constants={"campaign_jobs.relay.job:LOOK_EVERY_SECONDS": 0.01},
    ),
]
