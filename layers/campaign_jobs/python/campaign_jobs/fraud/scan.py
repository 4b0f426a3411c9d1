"""One scan: which users and key groups to look at, what the checks find there, and the signals brought up to date.

Everything works on temporary tables of the run's transaction, named with their schema.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import sql

from campaign_jobs.database.connection import Connection
from campaign_jobs.fraud import checks, lists
from campaign_jobs.fraud.decisions import Policy

FETCHED_AT_ONCE: Final = 10_000

_TEMPORARY_TABLES: Final = """
CREATE TEMPORARY TABLE fraud_policies (
    campaign_id uuid PRIMARY KEY,
    self_referral boolean, self_referral_email_weight integer, self_referral_device_weight integer,
    self_referral_ip_weight integer,
    velocity boolean, velocity_threshold integer, velocity_weight integer,
    fake_email boolean, fake_email_disposable_weight integer, fake_email_alias_weight integer,
    bot boolean, bot_weight integer,
    duplicate_ip boolean, duplicate_ip_threshold integer, duplicate_ip_weight integer,
    duplicate_device boolean, duplicate_device_threshold integer, duplicate_device_weight integer,
    ip_allowlist cidr[]
) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_touched (user_id uuid PRIMARY KEY) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_scope (
    campaign_id uuid, "check" text, evidence_key text, PRIMARY KEY (campaign_id, "check", evidence_key)
) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_disposable_domains (domain text PRIMARY KEY) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_crawlers (user_agent text) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_found (
    user_id uuid, "check" text, evidence_key text, campaign_id uuid, weight integer, magnitude integer,
    related_user_id uuid, evidence jsonb, PRIMARY KEY (user_id, "check", evidence_key)
) ON COMMIT DROP;
CREATE TEMPORARY TABLE fraud_affected (user_id uuid PRIMARY KEY) ON COMMIT DROP;
"""

_LOAD_POLICIES: Final = """
INSERT INTO pg_temp.fraud_policies
SELECT * FROM jsonb_populate_recordset(NULL::pg_temp.fraud_policies, %s::jsonb)
"""

# Users and both sides of referrals that changed since the watermark.
_FIND_TOUCHED: Final = """
INSERT INTO pg_temp.fraud_touched
SELECT id FROM campaign_jobs.waitlist_users WHERE touched_at >= %(watermark)s
UNION
SELECT referrer_id FROM campaign_jobs.referrals WHERE touched_at >= %(watermark)s
UNION
SELECT referred_id FROM campaign_jobs.referrals WHERE touched_at >= %(watermark)s
"""

# Every key group that a touched user is in now, or was in when its signals were found. Whoever made a difference to a
# group's signals has one of them, or is named by one as the related user; so no group that somebody left is missed.
_FIND_SCOPE: Final = """
INSERT INTO pg_temp.fraud_scope
SELECT u.campaign_id, 'duplicate_ip', abbrev(u.ip)
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.waitlist_users AS u ON u.id = t.user_id WHERE u.ip IS NOT NULL
UNION
SELECT u.campaign_id, 'duplicate_device', u.device_fingerprint
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.waitlist_users AS u ON u.id = t.user_id
WHERE u.device_fingerprint IS NOT NULL
UNION
SELECT u.campaign_id, 'fake_email', 'address:' || u.email_normalized
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.waitlist_users AS u ON u.id = t.user_id
UNION
SELECT u.campaign_id, 'velocity', u.id::text
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.waitlist_users AS u ON u.id = t.user_id
UNION
SELECT r.campaign_id, 'velocity', r.referrer_id::text
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.referrals AS r ON r.referred_id = t.user_id
UNION
SELECT r.campaign_id, 'self_referral', r.referrer_id || '>' || r.referred_id
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.referrals AS r ON r.referrer_id = t.user_id
UNION
SELECT r.campaign_id, 'self_referral', r.referrer_id || '>' || r.referred_id
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.referrals AS r ON r.referred_id = t.user_id
UNION
SELECT s.campaign_id, s."check", s.evidence_key
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.fraud_signals AS s ON s.user_id = t.user_id
UNION
SELECT s.campaign_id, s."check", s.evidence_key
FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.fraud_signals AS s ON s.related_user_id = t.user_id
"""

_DOMAINS: Final = """
SELECT DISTINCT split_part(u.email_normalized, '@', 2) FROM campaign_jobs.waitlist_users AS u WHERE true
"""
_USER_AGENTS: Final = """
SELECT DISTINCT u.user_agent FROM campaign_jobs.waitlist_users AS u WHERE u.user_agent IS NOT NULL
"""
_NARROW_TO_TOUCHED: Final = "AND u.id IN (SELECT user_id FROM pg_temp.fraud_touched)"

# Signals of checks that look at each user alone: their keys are no groups, so a scope of keys would be too wide.
_OF_ONE_USER: Final = (
    "(s.\"check\" = 'bot' OR s.\"check\" = 'fake_email' AND starts_with(s.evidence_key, 'domain:'))"
)

_LOOKED_AT: Final = """
    SELECT s.user_id, s."check", s.evidence_key
    FROM pg_temp.fraud_scope JOIN campaign_jobs.fraud_signals AS s USING (campaign_id, "check", evidence_key)
    WHERE NOT {of_one_user}
    UNION ALL
    SELECT s.user_id, s."check", s.evidence_key
    FROM pg_temp.fraud_touched AS t JOIN campaign_jobs.fraud_signals AS s USING (user_id)
    WHERE {of_one_user}
""".replace("{of_one_user}", _OF_ONE_USER)

_RETRACT: Final = """
WITH gone AS (
    DELETE FROM campaign_jobs.fraud_signals AS s
    {looked_at}
    NOT EXISTS (
        SELECT FROM pg_temp.fraud_found AS found
        WHERE (found.user_id, found."check", found.evidence_key, found.campaign_id)
            = (s.user_id, s."check", s.evidence_key, s.campaign_id)
    )
    RETURNING s.user_id
), affected AS (
    INSERT INTO pg_temp.fraud_affected SELECT DISTINCT user_id FROM gone ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone
"""
_RETRACT_FULL: Final = _RETRACT.replace("{looked_at}", "WHERE")
_RETRACT_INCREMENTAL: Final = _RETRACT.replace(
    "{looked_at}",
    """USING ({keys}) AS looked_at
    WHERE s.user_id = looked_at.user_id AND s."check" = looked_at."check" AND s.evidence_key = looked_at.evidence_key
        AND""".replace("{keys}", _LOOKED_AT),
)

_UPDATE: Final = """
WITH changed AS (
    UPDATE campaign_jobs.fraud_signals AS s
    SET weight = found.weight, magnitude = found.magnitude, related_user_id = found.related_user_id,
        evidence = found.evidence, last_seen_at = now()
    FROM pg_temp.fraud_found AS found
    WHERE (s.user_id, s."check", s.evidence_key) = (found.user_id, found."check", found.evidence_key)
        AND (s.weight, s.magnitude, s.related_user_id, s.evidence)
            IS DISTINCT FROM (found.weight, found.magnitude, found.related_user_id, found.evidence)
    RETURNING s.user_id
), affected AS (
    INSERT INTO pg_temp.fraud_affected SELECT DISTINCT user_id FROM changed ON CONFLICT DO NOTHING
)
SELECT count(*) FROM changed
"""

_ADD: Final = """
WITH added AS (
    INSERT INTO campaign_jobs.fraud_signals
        (user_id, "check", evidence_key, campaign_id, weight, magnitude, related_user_id, evidence)
    SELECT user_id, "check", evidence_key, campaign_id, weight, magnitude, related_user_id, evidence
    FROM pg_temp.fraud_found AS found
    WHERE NOT EXISTS (
        SELECT FROM campaign_jobs.fraud_signals AS s
        WHERE (s.user_id, s."check", s.evidence_key) = (found.user_id, found."check", found.evidence_key)
    )
    RETURNING user_id
), affected AS (
    INSERT INTO pg_temp.fraud_affected SELECT DISTINCT user_id FROM added ON CONFLICT DO NOTHING
)
SELECT count(*) FROM added
"""

# A full run may have new thresholds for old signals, so everybody with a signal or an open case is looked at again.
_AFFECT_EVERYBODY: Final = """
INSERT INTO pg_temp.fraud_affected
SELECT user_id FROM campaign_jobs.fraud_signals
UNION
SELECT user_id FROM campaign_jobs.fraud_cases WHERE status = 'open'
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class Scanned:
    users: int
    signals_added: int
    signals_updated: int
    signals_retracted: int


def scan(connection: Connection, policies: Mapping[UUID, Policy], watermark: str | None) -> Scanned:
    """Bring fraud_signals up to date, and leave in pg_temp.fraud_affected whose cases have to be looked at.

    `watermark` is a moment that everything unseen was touched at or after; None scans everything.
    """
    full = watermark is None
    for statement in _TEMPORARY_TABLES.strip().rstrip(";").split(";"):
        connection.execute(statement)
    rows = [_policy_row(campaign_id, policy) for campaign_id, policy in policies.items()]
    connection.execute(_LOAD_POLICIES, [json.dumps(rows)])
    if full:
        users = _count(
            connection,
            "SELECT count(*) FROM campaign_jobs.waitlist_users WHERE status <> 'removed'",
        )
    else:
        users = connection.execute(_FIND_TOUCHED, {"watermark": watermark}).rowcount
        connection.execute("ANALYZE pg_temp.fraud_touched")
        connection.execute(_FIND_SCOPE)
        connection.execute("ANALYZE pg_temp.fraud_scope")
    narrowed = "" if full else _NARROW_TO_TOUCHED
    _keep(connection, _DOMAINS + narrowed, lists.is_disposable, "fraud_disposable_domains")
    _keep(connection, _USER_AGENTS + narrowed, lists.is_crawler, "fraud_crawlers")
    for check in checks.STATEMENTS:
        connection.execute(check.statement(full=full))
    connection.execute("ANALYZE pg_temp.fraud_found")
    retracted = _count(connection, _RETRACT_FULL if full else _RETRACT_INCREMENTAL)
    updated = _count(connection, _UPDATE)
    added = _count(connection, _ADD)
    if full:
        connection.execute(_AFFECT_EVERYBODY)
    connection.execute("ANALYZE pg_temp.fraud_affected")
    return Scanned(users, added, updated, retracted)


def _policy_row(campaign_id: UUID, policy: Policy) -> dict[str, Any]:
    row: dict[str, Any] = {
        "campaign_id": str(campaign_id),
        "ip_allowlist": [str(network) for network in policy.ip_allowlist],
    }
    for check, options in policy.checks.model_dump().items():
        for name, value in options.items():
            row[check if name == "enabled" else f"{check}_{name}"] = value
    return row


def _keep(connection: Connection, distinct_values: str, belongs: Callable[[str], bool], table: str) -> None:
    """Classify each distinct value once, here, and keep those that belong in a temporary table."""
    insert = sql.SQL("INSERT INTO pg_temp.{} SELECT unnest(%s::text[])").format(sql.Identifier(table))
    with connection.cursor(name=table) as cursor:
        cursor.execute(distinct_values.encode())
        while values := cursor.fetchmany(FETCHED_AT_ONCE):
            connection.execute(insert, [[value for (value,) in values if belongs(value)]])


def _count(connection: Connection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])
