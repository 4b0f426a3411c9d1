"""Batches about the same rows, in any order and at once: no error reaches a caller, no deadlock, everything is done."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import IsolationLevel

from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.events import PositionEvent, PositionRecalcJobPayload
from campaign_jobs.position.job import PositionJob
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.worker.delivery import Coordinates, Delivery
from campaign_jobs.worker.outcomes import Done, Later, Rejected, Retry, Skipped
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign, RecordingSender
from tests.integration.reward_campaign import deadline, delivery_of

AT_ONCE = 4
ROUNDS = 6
ROWS = 150


class NoWebhooks:
    total_seconds = 1.0

    def post(self, url: str, body: bytes, headers: Any) -> Any:  # noqa: ARG002
        raise AssertionError("no webhook is due here")


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def databases(database_url: str) -> Iterator[list[Database]]:
    # Whoever waits for a lock looks for a deadlock after so long; the default is a second.
    conninfo = f"{database_url}?options=-c%20deadlock_timeout%3D50ms"
    made = [Database(conninfo) for _ in range(AT_ONCE)]
    yield made
    for database in made:
        database.close()


def at_once(
    databases: Sequence[Database],
    connection: Connection,
    job_on: Callable[[Database], Any],
    deliveries: Sequence[Delivery[Any]],
    *,
    prepare: Callable[[], None] = lambda: None,
    rivals: bool = False,
) -> list[Any]:
    """Each job processes all deliveries in an order of its own, at the same moment, again and again.

    Events that are `rivals` for once-keys lock others' rows besides their own, in an order that no batch knows, so
    there a deadlock may happen, and is repeated.
    """
    jobs = [job_on(database) for database in databases]
    together = threading.Barrier(AT_ONCE, action=prepare)

    def run(job: Any) -> list[Any]:
        outcomes: list[Any] = []
        for _ in range(ROUNDS):
            together.wait(60)
            outcomes += job.process(random.sample(deliveries, len(deliveries)), deadline())
        return outcomes

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = [outcome for result in pool.map(run, jobs) for outcome in result]
    for database in databases:
        database.close()
    # A session's counters are there once it has ended.
    while _value(connection, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 1:
        time.sleep(0.05)
    deadlocks = _value(
        connection, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert rivals or deadlocks == 0
    assert not [outcome for outcome in outcomes if isinstance(outcome, (Retry, Rejected))]
    return outcomes


def _value(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_who_lost_against_another_transaction_tries_again(database: Database, connection: Connection) -> None:
    campaign = MailCampaign(connection)
    seen: list[str] = []

    def work(own: Connection) -> None:
        (status,) = own.execute("SELECT status FROM campaign_jobs.campaigns").fetchone() or ("",)
        seen.append(status)
        if status == "active":
            campaign.set(status="paused")
        own.execute("UPDATE campaign_jobs.campaigns SET name = name || ' again'")

    repeat_on_conflict(database, work, isolation=IsolationLevel.REPEATABLE_READ)
    assert seen == ["active", "paused"]
    assert _value(connection, "SELECT count(*) FROM campaign_jobs.campaigns WHERE name LIKE '%again'") == 1


def email_job(sender: RecordingSender) -> Callable[[Database], EmailJob]:
    return lambda database: EmailJob(
        database, sender, pool_size=10, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )


@pytest.mark.parametrize("type_", ["verification", "welcome", "milestone"])
def test_mails(
    campaign: MailCampaign,
    databases: list[Database],
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    type_: str,
) -> None:
    """All claims run out before each round, so that they are released and taken again by whoever comes first."""
    users = [campaign.add_user() for _ in range(ROWS)]
    extra = {"milestone": 3} if type_ == "milestone" else {}
    # Two events for each user, so that once-keys collide too.
    deliveries = [campaign.asks(type_, user, **extra) for user in users for _ in range(2)]
    sender = RecordingSender()
    # In the first round the claims insert their rows: all at the same moment, and slowly enough to meet.
    connection.execute(
        "CREATE FUNCTION campaign_jobs.slow_down() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.0002); RETURN NEW; END $$"
    )
    connection.execute(
        "CREATE TRIGGER slow_down BEFORE INSERT ON campaign_jobs.email_messages"
        " FOR EACH ROW WHEN (NEW.type = 'verification') EXECUTE FUNCTION campaign_jobs.slow_down()"
    )
    claim, together, in_thread = store.claim, threading.Barrier(AT_ONCE), threading.local()

    def meet_and_claim(*arguments: Any, **named: Any) -> set[str]:
        if not hasattr(in_thread, "has_met"):
            in_thread.has_met = True
            together.wait(60)
        return claim(*arguments, **named)

    monkeypatch.setattr(store, "claim", meet_and_claim)

    def forget() -> None:
        if campaign.statuses():
            connection.execute("DROP TRIGGER IF EXISTS slow_down ON campaign_jobs.email_messages")
        connection.execute(
            "UPDATE campaign_jobs.email_messages SET status = 'claimed', accepted_at = NULL, ses_message_id = NULL,"
            " reason = NULL, claim_token = gen_random_uuid(), claimed_until = now() - interval '1 second'"
            " WHERE status = 'accepted'"
        )

    at_once(
        databases, connection, email_job(sender), deliveries, prepare=forget, rivals=type_ != "verification"
    )
    mails = ROWS if type_ != "verification" else 2 * ROWS
    assert campaign.statuses()["accepted"] == mails
    assert len(sender.accepted) == ROUNDS * mails


def test_mails_that_do_not_go(
    campaign: MailCampaign, databases: list[Database], connection: Connection
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user(status="blocked")) for _ in range(ROWS)]
    at_once(databases, connection, email_job(RecordingSender()), deliveries)
    assert campaign.statuses() == {"skipped": ROWS}


def test_parked_mails(campaign: MailCampaign, databases: list[Database], connection: Connection) -> None:
    campaign.set(status="paused")
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(ROWS)]
    at_once(databases, connection, email_job(RecordingSender()), deliveries)
    assert campaign.statuses() == {"parked": ROWS}


def test_rewards_that_are_mailed_or_held_or_parked(
    campaign: MailCampaign, databases: list[Database], connection: Connection
) -> None:
    by_mail = campaign.add_reward("email")
    mailed = [campaign.earn(by_mail) for _ in range(ROWS)]
    held = [campaign.earn(by_mail) for _ in range(ROWS)]
    for user_reward in held:
        campaign.open_case(user_reward)
    endpoint = campaign.add_endpoint("https://hooks.example.com/")
    connection.execute(
        "UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled', disabled_at = now(), disabled_reason = 'test'"
        " WHERE id = %s",
        [endpoint],
    )
    by_webhook = campaign.add_reward("webhook", endpoint)
    parked = [campaign.earn(by_webhook) for _ in range(ROWS)]
    deliveries = [delivery_of(user_reward) for user_reward in (*mailed, *held, *parked)]
    outcomes = at_once(
        databases, connection, lambda database: RewardJob(database, NoWebhooks(), pool_size=5), deliveries
    )
    assert {type(outcome) for outcome in outcomes} <= {Done, Skipped, Later}
    assert len(campaign.emitted()) == ROWS
    assert {campaign.row(id_, "status, held_at IS NULL") for id_ in mailed} == {("delivering", True)}
    assert {campaign.row(id_, "status, held_at IS NULL") for id_ in held} == {("earned", False)}
    assert {campaign.row(id_, "status, parked_at IS NULL") for id_ in parked} == {("earned", False)}


def test_rewards_that_are_given_up(
    campaign: MailCampaign, databases: list[Database], connection: Connection
) -> None:
    reward = campaign.add_reward("email")
    given_up = [(delivery_of(campaign.earn(reward)), "gave up") for _ in range(ROWS)]

    class GivingUp:
        def __init__(self, database: Database) -> None:
            self.job = RewardJob(database, NoWebhooks(), pool_size=5)

        def process(self, deliveries: Sequence[Any], _: Any) -> list[Any]:
            self.job.give_up(deliveries)
            return []

    at_once(databases, connection, GivingUp, given_up)  # type: ignore[arg-type]
    ids = [delivery.event.data.user_reward_id for delivery, _ in given_up]
    assert {campaign.row(id_) for id_ in ids} == {("failed",)}


def test_requests_for_positions(databases: list[Database], connection: Connection) -> None:
    campaigns = [MailCampaign(connection) for _ in range(5)]
    for campaign in campaigns:
        for _ in range(10):
            connection.execute(
                "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)"
                " VALUES (%s, %s, %s, %s)",
                (uuid4(), campaign.id, f"{uuid4()}@example.org", campaign.people + 1),
            )
            campaign.people += 1
    deliveries = [_position(campaigns[number % 5].id) for number in range(ROWS)]
    outcomes = at_once(databases, connection, PositionJob, deliveries)
    assert set(outcomes) == {Done()}
    for campaign in campaigns:
        row = connection.execute(
            "SELECT count(*), max(position) FROM campaign_jobs.user_positions WHERE campaign_id = %s",
            [campaign.id],
        ).fetchone()
        assert row == (10, 10)


def _position(campaign_id: UUID) -> Delivery[PositionEvent]:
    now = datetime.now(UTC)
    event = PositionEvent(
        id=str(uuid4()),
        type="job.position.recalculate",
        campaign_id=str(campaign_id),
        data=PositionRecalcJobPayload(campaign_id=campaign_id),
        timestamp=now,
    )
    return Delivery(event, Coordinates("job-events", 0, 0), 0, now)
