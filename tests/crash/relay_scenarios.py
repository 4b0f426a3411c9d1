"""The relay at its boundaries, with Apache Kafka."""

import json
from collections import Counter
from typing import Any

from campaign_jobs.database.connection import Connection
from campaign_jobs.outbox import enqueue
from tests.crash.scenario import Rest, Scenario
from tests.crash.schedule_scenarios import TICK
from tests.integration.email_campaign import MailCampaign

ONE_ROUND_MS = 24_000
"""Less than what makes it look again."""


def _everything_waits(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    _enqueue(connection, campaign, "first", "second")
    too_large = {"id": "too-large", "padding": "x" * 300_000}
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('too-large', 'key', %s)",
        (json.dumps(too_large),),
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, status, reason, parked_event)"
        " VALUES ('parked', 'welcome', %s, %s, 'parked', 'the campaign is paused', %s)",
        (campaign.id, user, json.dumps(campaign.event("welcome", user, "parked"))),
    )
    hooked = campaign.add_reward("webhook", campaign.add_endpoint("https://receiver/rewards"))
    parked, held = campaign.earn(hooked), campaign.earn(hooked)
    forgotten = campaign.earn(campaign.add_reward("email"))
    connection.execute(
        "UPDATE campaign_jobs.user_rewards SET status = 'delivering', mail_asked_at = now() - interval '23 days'"
        " WHERE id = %s",
        (forgotten,),
    )
    connection.execute(
        "UPDATE campaign_jobs.user_rewards SET parked_event_id = 'hook', parked_at = now() WHERE id = %s",
        (parked,),
    )
    connection.execute("UPDATE campaign_jobs.user_rewards SET held_at = now() WHERE id = %s", (held,))
    connection.execute(
        "INSERT INTO campaign_jobs.position_requests (campaign_id, created_at) VALUES (%s, now() - interval '1 hour')",
        (campaign.id,),
    )
    return [TICK]


def _enqueue(connection: Connection, campaign: MailCampaign, *event_ids: str) -> None:
    events = [campaign.asks("welcome", campaign.add_user(), event_id).event for event_id in event_ids]
    enqueue(connection, events)
    # They would be old enough for relay some time during the test.
    connection.execute("DELETE FROM campaign_jobs.position_requests")


def _everything_published(rest: Rest) -> None:
    assert Counter(record["type"] for record in rest.records) == {
        "job.email.welcome": 3,
        "job.reward.deliver": 2,
        "job.position.recalculate": 1,
    }
    assert {"first", "second", "parked", "hook"} <= {record["id"] for record in rest.records}
    assert rest.rows("SELECT event_id FROM campaign_jobs.outbox WHERE published_at IS NULL") == [
        ("too-large",)
    ]
    statuses = rest.rows("SELECT status FROM campaign_jobs.user_rewards")
    assert sorted(statuses) == [("earned",), ("earned",), ("failed",)]


def _one_event(connection: Connection) -> list[Any]:
    _enqueue(connection, MailCampaign(connection), "first")
    return [TICK]


def another_tick_waits(connection: Connection) -> list[Any]:
    """Once the lease has been renewed, the next tick's run asks for it."""
    connection.execute(
        "CREATE FUNCTION campaign_jobs.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.waiting := gen_random_uuid(); NEW.waiting_until := clock_timestamp() + interval '1 hour';"
        " RETURN NEW; END $$"
    )
    connection.execute(
        "CREATE TRIGGER wait BEFORE UPDATE ON campaign_jobs.leases FOR EACH ROW"
        " WHEN (OLD.owner = NEW.owner AND NEW.expires_at > OLD.expires_at) EXECUTE FUNCTION campaign_jobs.wait()"
    )
    return _one_event(connection)


def _another_holds_the_lease(connection: Connection) -> list[Any]:
    connection.execute(
        "INSERT INTO campaign_jobs.leases (name, owner, expires_at)"
        " VALUES ('relay', gen_random_uuid(), now() + interval '1 hour')"
    )
    return _one_event(connection)


def _one_published(rest: Rest) -> None:
    assert [record["id"] for record in rest.records] == ["first"]


SCENARIOS = [
    Scenario(
        name="relay: everything that can wait",
        function="relay",
        source="schedule",
        seed=_everything_waits,
        expect=_everything_published,
        remaining_ms=ONE_ROUND_MS,
    ),
    Scenario(
        name="relay: until the next tick waits",
        function="relay",
        source="schedule",
        seed=another_tick_waits,
        expect=_one_published,
        constants={"campaign_jobs.relay.job:LOOK_EVERY_SECONDS": 0.01},
    ),
    Scenario(
        name="relay: another one holds the lease",
        function="relay",
        source="schedule",
        seed=_another_holds_the_lease,
        expect=_one_published,
        remaining_ms=ONE_ROUND_MS,
    ),
]
