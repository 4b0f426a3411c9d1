"""What docs/data-contract.md says that PostgreSQL refuses, it refuses with that SQLSTATE and constraint."""

import json
import re
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from campaign_jobs.database.connection import Connection
from campaign_jobs.fraud.decisions import read_policy

ONE, OTHER = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
ADA, BOB, CY = (f"00000000-0000-0000-0000-00000000001{number}" for number in range(3))
ENDPOINT, REWARD, GIVEN, NEW = (f"00000000-0000-0000-0000-00000000002{number}" for number in range(4))
SECRET = "whsec_" + "A" * 40

# Two campaigns: the first with Ada, who was referred by Bob and has a reward, the second with Cy alone.
ARRANGED = f"""
INSERT INTO campaign_jobs.campaigns (id, name) VALUES ('{ONE}', 'One'), ('{OTHER}', 'Other');
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, referral_code)
VALUES ('{ADA}', '{ONE}', 'ada@example.org', 1, 'ada'), ('{BOB}', '{ONE}', 'bob@example.org', 2, 'bob'),
    ('{CY}', '{OTHER}', 'cy@example.org', 1, 'cy');
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id)
VALUES (gen_random_uuid(), '{ONE}', '{BOB}', '{ADA}');
INSERT INTO campaign_jobs.webhook_endpoints (id, campaign_id, url, secret)
VALUES ('{ENDPOINT}', '{OTHER}', 'https://example.org/hook', '{SECRET}');
INSERT INTO campaign_jobs.rewards (id, campaign_id, name, type, trigger_type, delivery_method)
VALUES ('{REWARD}', '{ONE}', 'Early access', 'early_access', 'manual', 'email');
INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id)
VALUES ('{GIVEN}', '{ONE}', '{ADA}', '{REWARD}');
INSERT INTO campaign_jobs.email_templates (type, enabled, subject, html, text) VALUES ('welcome', true, 's', 'h', 't');
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('event', 'key', '{{}}');
"""

USER = (
    "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, {})"
    " VALUES ('{}', '{}', {})"
)
REFERRAL = (
    "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id)"
    " VALUES ('{}', '{}', '{}', '{}')"
)
NEW_REWARD = (
    "INSERT INTO campaign_jobs.rewards"
    " (id, campaign_id, name, type, trigger_type, trigger_value, delivery_method, webhook_endpoint_id)"
    " VALUES ('{}', '{}', 'Another', 'custom', {})"
)
GIVE = "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id) VALUES ('{}', '{}', '{}', '{}')"
ADAS = f"UPDATE campaign_jobs.waitlist_users SET {{}} WHERE id = '{ADA}'"
GIVENS = f"UPDATE campaign_jobs.user_rewards SET {{}} WHERE id = '{GIVEN}'"

REFUSED = {
    "waitlist_users_one_per_email": USER.format("ip", NEW, ONE, "'ADA@example.org', 3, NULL"),
    "waitlist_users_campaign_id_original_position_key": USER.format(
        "ip", NEW, ONE, "'d@example.org', 1, NULL"
    ),
    "waitlist_users_campaign_id_referral_code_key": USER.format(
        "referral_code", NEW, ONE, "'d@example.org', 3, 'ada'"
    ),
    "waitlist_users_campaign_id_referred_by_id_fkey": USER.format(
        "referred_by_id", NEW, ONE, f"'d@example.org', 3, '{CY}'"
    ),
    "waitlist_users_check": ADAS.format("referred_by_id = id"),
    "waitlist_users_check1": ADAS.format("deleted_at = now()"),
    "waitlist_users_check2": ADAS.format("status = 'verified'"),
    "referrals_referred_id_key": REFERRAL.format(NEW, ONE, BOB, ADA),
    "referrals_campaign_id_referrer_id_fkey": REFERRAL.format(NEW, ONE, CY, BOB),
    "referrals_campaign_id_referred_id_fkey": REFERRAL.format(NEW, ONE, BOB, CY),
    "referrals_check": REFERRAL.format(NEW, ONE, BOB, BOB),
    "referrals_check1": "UPDATE campaign_jobs.referrals SET status = 'converted'",
    "rewards_check": NEW_REWARD.format(NEW, ONE, "'manual', NULL, 'webhook', NULL"),
    "rewards_check1": NEW_REWARD.format(NEW, ONE, "'position', NULL, 'email', NULL"),
    "rewards_campaign_id_webhook_endpoint_id_fkey": NEW_REWARD.format(
        NEW, ONE, f"'manual', NULL, 'webhook', '{ENDPOINT}'"
    ),
    "webhook_endpoints_check": f"UPDATE campaign_jobs.webhook_endpoints SET previous_secret = '{SECRET}'",
    "user_rewards_reward_id_user_id_occurrence_key": GIVE.format(NEW, ONE, ADA, REWARD),
    "user_rewards_campaign_id_user_id_fkey": GIVE.format(NEW, ONE, CY, REWARD),
    "user_rewards_campaign_id_reward_id_fkey": GIVE.format(NEW, OTHER, CY, REWARD),
    "user_rewards_check": GIVENS.format("status = 'delivered'"),
    "user_rewards_check2": GIVENS.format("claim_token = gen_random_uuid(), claimed_until = now()"),
    "user_rewards_check4": GIVENS.format("status = 'failed', parked_event_id = 'event', parked_at = now()"),
    "user_rewards_check5": GIVENS.format("status = 'failed', held_at = now()"),
    "email_templates_one_enabled": (
        "INSERT INTO campaign_jobs.email_templates (type, version, enabled, subject, html, text)"
        " VALUES ('welcome', 2, true, 's', 'h', 't')"
    ),
    "outbox_event_id_key": (
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('event', 'key', '{}')"
    ),
    "outbox_event_fits": (
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)"
        " SELECT 'large', 'key', jsonb_build_object('numbers', jsonb_agg(1e131071)) FROM generate_series(1, 4)"
    ),
    "outbox_partition_key_fits": (
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES ('other', repeat('k', 1001), '{}')"
    ),
}


@pytest.fixture
def arranged(connection: Connection) -> Connection:
    connection.execute(ARRANGED.encode())
    return connection


@pytest.fixture(scope="module")
def documented(repository: Path) -> dict[str, str]:
    """The SQLSTATE of each constraint that the table of refusals names."""
    document = (repository / "docs/data-contract.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [^|]+ \| (23\d{3}) \| ([^|]+) \|", document.partition("## Refusals\n")[2], re.MULTILINE
    )
    return {name: code for code, names in rows for name in re.findall(r"`(\w+)`", names)}


def refusal(connection: Connection, statement: str) -> tuple[str | None, str | None]:
    with pytest.raises(psycopg.IntegrityError) as refused:
        connection.execute(statement.encode())
    return refused.value.diag.constraint_name, refused.value.sqlstate


def test_what_is_said_to_be_refused_is_refused(arranged: Connection, documented: dict[str, str]) -> None:
    actual = {name: refusal(arranged, statement) for name, statement in REFUSED.items()}
    assert actual == {name: (name, code) for name, code in documented.items()}


def test_a_time_zone_must_exist_and_stays(arranged: Connection) -> None:
    for zone in ("Mars/Olympus", "Europe/Berlin"):
        statement = f"UPDATE campaign_jobs.campaigns SET timezone = '{zone}' WHERE id = '{ONE}'"
        assert refusal(arranged, statement) == (None, "23514")


def test_a_value_out_of_range_is_refused_by_its_columns_constraint(arranged: Connection) -> None:
    statement = f"UPDATE campaign_jobs.rewards SET type = 'a car' WHERE id = '{REWARD}'"
    assert refusal(arranged, statement) == ("rewards_type_check", "23514")


def test_a_row_that_others_refer_to_is_not_deleted(arranged: Connection) -> None:
    for table in ("campaigns", "waitlist_users", "rewards"):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            arranged.execute(sql.SQL("DELETE FROM campaign_jobs.{}").format(sql.Identifier(table)))


def test_a_service_may_settle_what_is_being_delivered(arranged: Connection) -> None:
    arranged.execute(
        GIVENS.format(
            "status = 'delivering', claim_token = gen_random_uuid(), claimed_until = now() + interval '1 minute'"
        ).encode()
    )
    for status in ("redeemed", "revoked", "expired"):
        arranged.execute(GIVENS.format(f"status = '{status}'").encode())
    for status in ("earned", "failed"):
        assert refusal(arranged, GIVENS.format(f"status = '{status}'")) == ("user_rewards_check2", "23514")


def test_a_service_may_settle_what_is_held_or_parked(arranged: Connection) -> None:
    arranged.execute(GIVENS.format("held_at = now(), parked_event_id = 'event', parked_at = now()").encode())
    for status in ("redeemed", "revoked", "expired"):
        arranged.execute(GIVENS.format(f"status = '{status}'").encode())


# Every moment that a service writes, by the document's own list of columns.
MOMENTS = """
SELECT c.relname, a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'campaign_jobs'::regnamespace AND c.relkind = 'r' AND a.atttypid = 'timestamptz'::regtype
"""


def test_a_moment_that_a_reader_would_break_on_is_refused(arranged: Connection, repository: Path) -> None:
    document = (repository / "docs/data-contract.md").read_text(encoding="utf-8")
    written = {
        (table, column)
        for table, body in re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", document, re.MULTILINE | re.DOTALL)
        for column in re.findall(r"^\| `(\w+)` \| service(?: once)?(?:, erasing)? \|", body, re.MULTILINE)
    }
    moments = written & {(row[0], row[1]) for row in arranged.execute(MOMENTS)}
    assert len(moments) == 12
    arranged.execute(GIVENS.format("expires_at = '9999-12-31 00:00:00+00'").encode())
    for table, column in sorted(moments):
        for moment in ("infinity", "-infinity", "10000-01-01", "1969-12-31"):
            statement = f"UPDATE campaign_jobs.{table} SET {column} = '{moment}'"
            if column in ("deleted_at", "previous_secret_until"):
                statement += ", " + {"deleted_at": "status = 'removed'"}.get(
                    column, f"previous_secret = '{SECRET}'"
                )
            assert refusal(arranged, statement) == (f"{table}_{column}_check", "23514"), moment


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("position_email_cooldown", "10 years 1 day"),
        ("position_email_cooldown", "infinity"),
        ("fraud_policy", '{"preset": "' + "n" * 50_000 + '"}'),
    ],
)
def test_a_setting_out_of_bounds_is_refused(arranged: Connection, column: str, value: str) -> None:
    statement = f"UPDATE campaign_jobs.campaigns SET {column} = '{value}'"
    assert refusal(arranged, statement) == (f"campaigns_{column}_check", "23514")


def test_the_longest_list_of_addresses_fits_into_a_policy(arranged: Connection) -> None:
    networks = [f"ffff:ffff:ffff:ffff:ffff:ffff:ffff:{number:x}/128" for number in range(64_536, 65_536)]
    policy = json.dumps({"policy": "block", "preset": "lenient", "ip_allowlist": networks})
    arranged.execute("UPDATE campaign_jobs.campaigns SET fraud_policy = %s", (policy,))
    assert read_policy(json.loads(policy))[1] is None
