"""On large tables, the jobs' statements find their rows through indexes.

The plans are those of the statements as the jobs send them: PostgreSQL's auto_explain reports each one.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from campaign_jobs.database.connection import Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.ses import Accepted, Mail, SendResult
from campaign_jobs.events import (
    EmailJobPayload,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
    new_event,
)
from campaign_jobs.position.job import PositionJob
from campaign_jobs.relay.job import Relay
from campaign_jobs.retention import TABLES, Retention
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.webhooks.client import HttpsWebhookClient
from campaign_jobs.settings import RetentionSettings
from campaign_jobs.worker.delivery import Coordinates, Deadline, Delivery
from campaign_jobs.worker.outcomes import Done
from local.postgres import PostgresServer
from tests.conftest import TEMPLATE_DATABASE
from tests.integration.email_campaign import UNSUBSCRIBE_LINKS

PEOPLE = 40_000
IN_SMALL_CAMPAIGN = 100
LARGE = ("waitlist_users", "referrals", "user_rewards", "email_messages", "user_positions", "outbox")
LARGE_WITH_TIME = (*LARGE, "email_events", "webhook_attempts", "fraud_cases", "campaign_metrics")

FILL = f"""
INSERT INTO campaign_jobs.campaigns (id, name)
VALUES (md5('large')::uuid, 'Large'), (md5('small')::uuid, 'Small');
INSERT INTO campaign_jobs.waitlist_users
    (id, campaign_id, email, original_position, status, verified_at, verification_token)
SELECT md5('user' || n)::uuid,
       CASE WHEN n <= {IN_SMALL_CAMPAIGN} THEN md5('small')::uuid ELSE md5('large')::uuid END,
       'person' || n || '@example.org', n, 'verified', now(), 'token' || n
FROM generate_series(1, {PEOPLE}) AS n;
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)
SELECT md5('referral' || n)::uuid,
       CASE WHEN n <= {IN_SMALL_CAMPAIGN} THEN md5('small')::uuid ELSE md5('large')::uuid END,
       md5('user' || n - 1)::uuid, md5('user' || n)::uuid, 'verified', now()
FROM generate_series(2, {PEOPLE}) AS n WHERE n <> {IN_SMALL_CAMPAIGN} + 1;
INSERT INTO campaign_jobs.user_positions
    (user_id, campaign_id, score, verified_referrals, position, last_enqueued_position)
SELECT id, campaign_id, original_position, 0, original_position, original_position FROM campaign_jobs.waitlist_users;
INSERT INTO campaign_jobs.rewards (id, campaign_id, name, type, trigger_type, delivery_method)
SELECT md5(name)::uuid, id, name, 'custom', 'manual', 'email' FROM campaign_jobs.campaigns;
INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, status, delivered_at)
SELECT md5('user reward' || n)::uuid, campaign_id, id,
       CASE WHEN n <= {IN_SMALL_CAMPAIGN} THEN md5('Small')::uuid ELSE md5('Large')::uuid END,
       CASE WHEN n <= {IN_SMALL_CAMPAIGN} THEN 'earned' ELSE 'delivered' END,
       CASE WHEN n > {IN_SMALL_CAMPAIGN} THEN now() END
FROM generate_series(1, {PEOPLE}) AS n JOIN campaign_jobs.waitlist_users ON id = md5('user' || n)::uuid;
INSERT INTO campaign_jobs.email_messages
    (event_id, type, campaign_id, user_id, once_key, status, ses_message_id, position, accepted_at)
SELECT 'mail ' || type || n, type, campaign_id, id, CASE type WHEN 'welcome' THEN 'welcome:' || id END,
       'accepted', 'ses' || n,
       CASE type WHEN 'position_update' THEN original_position END, now() - interval '2 days'
FROM generate_series({IN_SMALL_CAMPAIGN} + 1, {PEOPLE}) AS n
JOIN campaign_jobs.waitlist_users ON id = md5('user' || n)::uuid
CROSS JOIN (VALUES ('welcome'), ('position_update')) AS kinds (type);
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event, published_at)
SELECT 'published ' || n, 'key', '{{}}', now() FROM generate_series(1, {PEOPLE}) AS n;
DELETE FROM campaign_jobs.position_requests;
"""

# A year and a half in which the same happened each day; nobody has deleted anything.
AGED = """
UPDATE campaign_jobs.email_messages
SET asked_at = created_at - age, created_at = created_at - age, updated_at = created_at - age,
    accepted_at = created_at - age
FROM (SELECT event_id AS id, interval '1 minute' * row_number() OVER (ORDER BY event_id) * 10 AS age
      FROM campaign_jobs.email_messages) AS ages
WHERE event_id = id;
-- A position that was told last stays.
UPDATE campaign_jobs.email_messages SET type = 'verification', position = NULL
WHERE type = 'position_update' AND position % 2 = 0;
INSERT INTO campaign_jobs.email_events (tag, ses_message_id, delivery_status, occurred_at, recorded_at)
SELECT tag, ses_message_id, 'delivered', accepted_at, accepted_at FROM campaign_jobs.email_messages;
UPDATE campaign_jobs.outbox SET published_at = now() - interval '1 minute' * id * 20;
INSERT INTO campaign_jobs.webhook_endpoints (id, campaign_id, url, secret)
SELECT md5('large')::uuid, md5('large')::uuid, 'https://example.com', 'whsec_' || repeat('A', 40);
INSERT INTO campaign_jobs.webhook_attempts (user_reward_id, endpoint_id, event_id, attempted_at, duration_ms)
SELECT id, md5('large')::uuid, 'event', now() - interval '20 minutes' * row_number() OVER (), 5
FROM campaign_jobs.user_rewards;
INSERT INTO campaign_jobs.fraud_cases
    (campaign_id, user_id, status, holding, risk_score, evidence, rules_version, updated_at)
SELECT campaign_id, id, 'retracted', true, 50, '[]', '1', now() - interval '40 minutes' * row_number() OVER ()
FROM campaign_jobs.waitlist_users;
INSERT INTO campaign_jobs.campaign_metrics (campaign_id, bucket, new_signups)
SELECT md5('large')::uuid, date_trunc('hour', now()) - interval '1 hour' * n, 1
FROM generate_series(1, 40000) AS n;
INSERT INTO campaign_jobs.job_watermarks (job_type, watermark) VALUES ('analytics', now());
"""


class Sender:
    def send(self, _: Mail) -> SendResult:
        return Accepted("accepted")

    def max_send_rate(self) -> float:
        return 1_000_000


class Publisher:
    def submit(self, _: Sequence[tuple[str, bytes]]) -> "Future[None]":
        acknowledged: Future[None] = Future()
        acknowledged.set_result(None)
        return acknowledged


@pytest.fixture(scope="module")
def large_database(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.create_database("query_plans", template=TEMPLATE_DATABASE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.encode())
        connection.execute("VACUUM ANALYZE")
    yield url
    postgres_server.drop_database("query_plans")


class Plans:
    """A database whose statements report their plans."""

    def __init__(self, url: str) -> None:
        self.seen: list[str] = []
        settings = (
            "session_preload_libraries=auto_explain",
            "auto_explain.log_min_duration=0",
            "client_min_messages=log",
        )
        options = " ".join(f"-c {setting}" for setting in settings)
        self.database = Database(make_conninfo(url, options=options))
        with self.database.transaction() as connection:
            connection.add_notice_handler(lambda notice: self.seen.append(notice.message_primary or ""))

    def scanned_whole(self, large: Sequence[str] = LARGE) -> set[str]:
        """The large tables of which some statement has read every row."""
        assert any("Index" in plan for plan in self.seen), "no plan was reported"
        return {
            table for plan in self.seen for table in re.findall(r"Seq Scan on (\w+)", plan) if table in large
        }


@pytest.fixture
def plans(large_database: str) -> Iterator[Plans]:
    plans = Plans(large_database)
    yield plans
    plans.database.close()


def test_this_test_would_notice(plans: Plans) -> None:
    with plans.database.transaction() as connection:
        connection.execute("SELECT count(*) FROM campaign_jobs.outbox WHERE partition_key = 'other'")
        connection.execute("SELECT event FROM campaign_jobs.outbox WHERE event_id = 'published 1'")
    assert plans.scanned_whole() == {"outbox"}


def test_email(plans: Plans) -> None:
    job = EmailJob(
        plans.database,
        Sender(),
        pool_size=10,
        default_sender="a@example.com",
        default_base_url="https://a.example",
        unsubscribe_links=UNSUBSCRIBE_LINKS,
    )
    users = ids(plans.database, "SELECT id FROM campaign_jobs.waitlist_users WHERE original_position <= 20")
    small = uuid.UUID(hex=md5(plans.database, "small"))
    payloads = [
        EmailJobPayload(type=kind, campaign_id=small, user_id=user, milestone=3)
        for user in users
        for kind in ("welcome", "position_update", "milestone", "verification")
    ]
    outcomes = job.process(deliveries(payloads), deadline())
    assert outcomes.count(Done()) == 40  # welcome and milestone; the others are skipped
    assert plans.scanned_whole() == set()


def test_reward(plans: Plans) -> None:
    job = RewardJob(plans.database, HttpsWebhookClient(), pool_size=10)
    earned = ids(plans.database, "SELECT id FROM campaign_jobs.user_rewards WHERE status = 'earned' LIMIT 20")
    outcomes = job.process(
        deliveries([RewardDeliveryJobPayload(user_reward_id=id_) for id_ in earned]), deadline()
    )
    assert set(outcomes) == {Done()}
    plans.seen = [plan for plan in plans.seen if "status = 'earned'" not in plan.splitlines()[1]]
    assert plans.scanned_whole() == set()


def test_position_of_a_small_campaign(plans: Plans) -> None:
    small = uuid.UUID(hex=md5(plans.database, "small"))
    payload = PositionRecalcJobPayload(campaign_id=small, points_per_referral=2)
    assert PositionJob(plans.database).process(deliveries([payload]), deadline()) == [Done()]
    assert plans.scanned_whole() == set()


def test_relay(plans: Plans) -> None:
    Relay(plans.database, Publisher()).round()
    assert plans.scanned_whole() == set()


@pytest.fixture(scope="module")
def aged_database(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.create_database("aged_query_plans", template=TEMPLATE_DATABASE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.encode())
        connection.execute(AGED.encode())
        connection.execute("VACUUM ANALYZE")
    yield url
    postgres_server.drop_database("aged_query_plans")


def test_retention(aged_database: str) -> None:
    plans = Plans(aged_database)
    least = dict.fromkeys(RetentionSettings.environment_names(), "100")
    kept = Retention(plans.database, RetentionSettings.load(least))
    for item in TABLES:
        # The first batch of events only declares them too old.
        assert sum(kept._delete_batch(item).deleted for _ in range(3)) > 1_000
    assert plans.scanned_whole(LARGE_WITH_TIME) == set()
    plans.database.close()


def ids(database: Database, statement: str) -> list[uuid.UUID]:
    with database.transaction() as connection:
        connection.execute("SET LOCAL auto_explain.log_min_duration = -1")
        return [row[0] for row in connection.execute(statement.encode())]


def md5(database: Database, text: str) -> str:
    with database.transaction() as connection:
        row = connection.execute("SELECT md5(%s)", [text]).fetchone()
    assert row is not None
    return str(row[0])


def deliveries(payloads: Sequence[Payload]) -> list[Delivery[object]]:
    now = datetime.now(UTC)
    return [
        Delivery(new_event(payload), Coordinates("t", 0, number), 0, now)
        for number, payload in enumerate(payloads)
    ]


def deadline() -> Deadline:
    return Deadline.of_invocation(lambda: 100_000)
