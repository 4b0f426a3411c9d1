"""What a killed invocation left behind, found at each boundary."""

from typing import Any

from campaign_jobs.catalog import HEARTBEAT_EVENT_TYPE
from campaign_jobs.database.connection import Connection
from campaign_jobs.worker.isolation import KILLED_ALONE
from tests.crash.scenario import Rest, Scenario, retried
from tests.integration.email_campaign import MailCampaign


def _marked(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    connection.execute(
        "INSERT INTO campaign_jobs.batch_markers"
        " (consumer_group, topic, partition, marker_id, first_offset, last_offset)"
        " VALUES ('job-workers-email', 'job-events', 0, gen_random_uuid(), 1, 7)"
    )
    return [campaign.event("verification", campaign.add_user()) for _ in range(2)]


def _sent_alone(rest: Rest) -> None:
    assert rest.rows("SELECT status FROM campaign_jobs.email_messages") == [("accepted",)] * 2
    assert sorted(rest.outside.mails.values()) == [1, 1]
    _nothing_left(rest)


def _started_three_times(connection: Connection) -> list[Any]:
    """A record that is nobody's work: stopped once its count is cleared, it begins anew, as a redriven one does."""
    connection.execute(
        "INSERT INTO campaign_jobs.solo_starts"
        " (consumer_group, topic, partition, record_offset, starts, last_started_at)"
        " VALUES ('job-workers-email', 'job-events', 0, 0, 3, now())"
    )
    return [retried({"type": HEARTBEAT_EVENT_TYPE})]


def _dead(rest: Rest) -> None:
    assert [reason for _, _, reason in rest.outside.dead_letters] == [KILLED_ALONE]
    assert not rest.outside.mails
    _nothing_left(rest)


def _nothing_left(rest: Rest) -> None:
    assert rest.rows("SELECT count(*) FROM campaign_jobs.batch_markers") == [(0,)]
    assert rest.rows("SELECT count(*) FROM campaign_jobs.solo_starts") == [(0,)]


SCENARIOS = [
    Scenario(
        name="isolation: a marker is found",
        function="email",
        source="kafka",
        seed=_marked,
        expect=_sent_alone,
    ),
    Scenario(
        name="isolation: the fourth start alone",
        function="email",
        source="retry queue",
        seed=_started_three_times,
        expect=_dead,
    ),
]
