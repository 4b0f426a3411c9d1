"""docs/data-contract.md names every table and column with its writer, and nothing that does not exist."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.events import RewardDeliveryJobPayload
from campaign_jobs.fraud.decisions import PRESETS, Policy, read_policy
from campaign_jobs.retention import TABLES
from campaign_jobs.reward.decisions import UserReward
from campaign_jobs.reward.webhooks.message import body_of
from campaign_jobs.reward.webhooks.signing import signed_headers
from campaign_jobs.settings import RetentionSettings

SECRET = "whsec_" + "A" * 40
JOBS = {"email", "position", "reward", "unroutable", "analytics", "fraud", "relay", "feedback", "unsubscribe"}
WRITERS = JOBS | {"service", "service once", "erasing", "trigger", "database", "nobody yet"}

COLUMNS = """
SELECT c.relname, a.attname
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'campaign_jobs'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
"""
VIEWS = """
SELECT c.relname, a.attname
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'campaign_jobs'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
"""
NAMES = """
SELECT conname FROM pg_constraint WHERE connamespace = 'campaign_jobs'::regnamespace
UNION SELECT relname FROM pg_class WHERE relnamespace = 'campaign_jobs'::regnamespace
"""
# The values that a column of texts is limited to.
ALLOWED_VALUES = """
SELECT conrelid::regclass::text, a.attname, pg_get_constraintdef(con.oid)
FROM pg_constraint AS con JOIN pg_attribute AS a ON a.attrelid = con.conrelid AND a.attnum = con.conkey[1]
WHERE con.connamespace = 'campaign_jobs'::regnamespace AND con.contype = 'c' AND cardinality(con.conkey) = 1
    AND pg_get_constraintdef(con.oid) LIKE '%= ANY (ARRAY[%'
"""


@pytest.fixture(scope="module")
def document(repository: Path) -> str:
    return (repository / "docs/data-contract.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(document: str) -> dict[str, dict[str, tuple[set[str], str]]]:
    """Each documented table with its columns, and their writers and meanings."""
    found: dict[str, dict[str, tuple[set[str], str]]] = {}
    for section in re.split(r"^##+ ", document, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        if (name := re.fullmatch(r"`(\w+)`", heading)) is None:
            continue
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|(.*)\|$", body, re.MULTILINE)
        assert len(rows) == len({row[0] for row in rows}), f"{name[1]} names a column twice"
        found[name[1]] = {
            column: (set(writers.strip().split(", ")), meaning) for column, writers, meaning in rows
        }
    return found


@pytest.fixture
def service(connection: Connection, database_url: str, document: str) -> Iterator[Connection]:
    """A connection of a role that has the privileges of the document, and no others."""
    name = f"service_{uuid.uuid4().hex}"
    role = sql.Identifier(name)
    (grants,) = blocks(document, "sql")
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'service'").format(role))
    try:
        connection.execute(grants.replace("campaign_service", name).encode())
        conninfo = make_conninfo(database_url, user=name, password="service")
        with psycopg.connect(conninfo, autocommit=True) as own:
            yield own
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)


def pairs(connection: Connection, query: str) -> set[tuple[str, str]]:
    return {(row[0], row[1]) for row in connection.execute(query.encode())}


def test_every_column_is_documented_and_no_other(
    connection: Connection, tables: Mapping[str, Mapping[str, object]]
) -> None:
    documented = {(table, column) for table, columns in tables.items() for column in columns}
    assert documented == pairs(connection, COLUMNS)


def test_every_table_says_how_long_its_rows_are_kept(connection: Connection, document: str) -> None:
    """A table that is added grows for ever until somebody has thought of it."""
    section = document.partition("\n## How long things are kept\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| ([^|]+) \| [^|]*\|$", section, re.MULTILINE)
    kept = {
        table: set(re.findall(r"`([A-Z_]+)`", goes)) for tables, goes in rows for table in tables.split(", ")
    }
    assert sorted(kept) == sorted({f"`{table}`" for table, _ in pairs(connection, COLUMNS)})
    by_setting = {table.strip("`"): settings for table, settings in kept.items() if settings}
    assert by_setting == {item.table: {item.setting.upper()} for item in TABLES}
    assert {item.setting.upper() for item in TABLES} == set(RetentionSettings.environment_names())


def test_every_writer_is_one_that_the_document_explains(
    tables: Mapping[str, Mapping[str, tuple[set[str], str]]],
) -> None:
    wrong = {
        f"{table}.{column}": writers - WRITERS
        for table, columns in tables.items()
        for column, (writers, _) in columns.items()
        if writers - WRITERS
    }
    assert not wrong


def test_every_allowed_value_is_documented(
    connection: Connection, tables: Mapping[str, Mapping[str, tuple[set[str], str]]]
) -> None:
    found = 0
    for table, column, definition in connection.execute(ALLOWED_VALUES):
        values = re.findall(r"'(\w+)'::text", definition)
        meaning = tables[table.removeprefix("campaign_jobs.")][column][1]
        assert [value for value in values if f"`{value}`" not in meaning] == [], f"{table}.{column}"
        found += len(values)
    assert found > 50


def test_what_is_named_exists(
    connection: Connection, document: str, tables: Mapping[str, Mapping[str, object]]
) -> None:
    names = {row[0] for row in connection.execute(NAMES)}
    columns = pairs(connection, COLUMNS) | pairs(connection, VIEWS)
    known = {table for table, _ in columns}
    codes = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", document, flags=re.DOTALL))
    dotted = [match for code in codes if (match := re.fullmatch(r"(\w+)\.(\w+)", code)) and match[1] in known]
    assert len(dotted) > 15
    assert [match[0] for match in dotted if (match[1], match[2]) not in columns] == []
    constraint = re.compile(rf"(?:{'|'.join(known)})_\w+")
    names |= {column for _, column in columns}
    assert [code for code in codes if constraint.fullmatch(code) and code not in names] == []


def test_statuses_move_only_between_statuses_that_exist(connection: Connection, document: str) -> None:
    allowed = {
        (table.removeprefix("campaign_jobs."), column): set(re.findall(r"'(\w+)'::text", definition))
        for table, column, definition in connection.execute(ALLOWED_VALUES)
    }
    sections = re.findall(r"^### [\w ]+: `(\w+)\.status`\n(.*?)(?=^##)", document, re.MULTILINE | re.DOTALL)
    assert len(sections) == 6
    for table, body in sections:
        moves = re.findall(r"^\| ([^|]*) \| ([^|]*) \| [^|]+ \|.*\|$", body, re.MULTILINE)[1:]
        named = {value for move in moves for cell in move for value in re.findall(r"`(\w+)`", cell)}
        others = {column for name, column in pairs(connection, COLUMNS) if name == table}
        assert named - others == allowed[table, "status"], table


def test_a_services_role_may_write_its_columns_and_no_others(
    service: Connection, tables: Mapping[str, Mapping[str, tuple[set[str], str]]]
) -> None:
    may = "SELECT has_column_privilege(%s, %s, 'INSERT'), has_column_privilege(%s, %s, 'UPDATE')"
    for table, columns in tables.items():
        for column, (writers, _) in columns.items():
            name = f"campaign_jobs.{table}"
            row = service.execute(may, (name, column, name, column)).fetchone()
            assert row is not None
            inserts, updates = row
            assert inserts == bool(writers & {"service", "service once"}), f"INSERT of {table}.{column}"
            if "service once" not in writers:
                assert updates == ("service" in writers), f"UPDATE of {table}.{column}"


def test_a_service_needs_no_more_than_that(service: Connection, connection: Connection) -> None:
    campaign, endpoint, reward, user_reward = (uuid.uuid4() for _ in range(4))
    ada, bob = uuid.uuid4(), uuid.uuid4()
    referral = uuid.uuid4()
    service.execute("INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Launch')", (campaign,))
    service.execute("UPDATE campaign_jobs.campaigns SET timezone = 'Asia/Kolkata' WHERE id = %s", (campaign,))
    for number, user in enumerate((ada, bob), start=1):
        service.execute(
            "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)"
            " VALUES (%s, %s, %s, %s)",
            (user, campaign, f"{user}@example.org", number),
        )
    service.execute(
        "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id) VALUES (%s, %s, %s, %s)",
        (referral, campaign, ada, bob),
    )
    for table in ("waitlist_users", "referrals"):
        service.execute(
            sql.SQL(
                "UPDATE campaign_jobs.{} SET status = 'verified', verified_at = now() WHERE campaign_id = %s"
            ).format(sql.Identifier(table)),
            (campaign,),
        )
    service.execute(
        "INSERT INTO campaign_jobs.webhook_endpoints (id, campaign_id, url, secret, status)"
        " VALUES (%s, %s, %s, %s, %s)",
        (endpoint, campaign, "https://example.org/hook", SECRET, "disabled"),
    )
    service.execute(
        "UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled' WHERE id = %s", (endpoint,)
    )
    service.execute(
        "INSERT INTO campaign_jobs.rewards"
        " (id, campaign_id, name, type, trigger_type, delivery_method, webhook_endpoint_id)"
        " VALUES (%s, %s, 'Early access', 'early_access', 'manual', 'webhook', %s)",
        (reward, campaign, endpoint),
    )
    with service.transaction():
        service.execute(
            "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id) VALUES (%s, %s, %s, %s)",
            (user_reward, campaign, ada, reward),
        )
        assert outbox.enqueue(service, [RewardDeliveryJobPayload(user_reward_id=user_reward)]) == 1
    service.execute(
        "INSERT INTO campaign_jobs.email_templates (campaign_id, type, subject, html, text)"
        " VALUES (%s, 'welcome', 'Hello', '<p>Hello</p>', 'Hello')",
        (campaign,),
    )
    service.execute("DELETE FROM campaign_jobs.referrals WHERE id = %s", (referral,))

    requested = connection.execute(
        "SELECT count(*) FROM campaign_jobs.position_requests WHERE campaign_id = %s", (campaign,)
    ).fetchone()
    # Two signups, a referral that counts, and one that is gone.
    assert requested == (4,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.execute("UPDATE campaign_jobs.user_positions SET position = 1")


def test_the_policys_keys_defaults_and_presets_are_documented(document: str) -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (\w+) \| (\w+) \| (\w+) \|",
        document.partition("## Fraud policy\n")[2],
        re.MULTILINE,
    )
    documented = {
        key: dict(zip(("strict", "normal", "lenient"), values, strict=True)) for key, *values in rows
    }
    actual: dict[str, dict[str, str]] = {}
    for preset in PRESETS:
        for key, value in flattened(Policy.model_validate({"preset": preset}).model_dump()).items():
            actual.setdefault(key, {})[preset] = as_shown(value)
    assert documented == actual


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flattened(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def as_shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value or "none")


def test_the_example_of_a_policy_is_valid(document: str) -> None:
    example = json.loads(blocks(document.partition("## Fraud policy\n")[2], "json")[0])
    policy, problem = read_policy(example)
    assert problem is None
    assert (policy.case_from, policy.high_from) == (40, 60)
    assert policy.checks.velocity.threshold == 8 and not policy.checks.bot.enabled


def test_the_example_of_a_webhook_is_what_is_sent(document: str) -> None:
    example = json.loads(blocks(document.partition("## Receiving webhooks\n")[2], "json")[0])
    data = example["data"]
    moment = datetime.fromisoformat(example["timestamp"])
    sent = body_of(
        UserReward(
            now=moment,
            id=uuid.UUID(data["user_reward_id"]),
            campaign_id=uuid.UUID(data["campaign_id"]),
            status="delivering",
            occurrence=1,
            data=data["data"],
            earned_at=moment,
            expires_at=None,
            claimed_until=None,
            mail_on_its_way=False,
            held=False,
            user_id=uuid.UUID(data["user"]["id"]),
            user_email=data["user"]["email"],
            user_status="verified",
            reward_id=uuid.UUID(data["reward"]["id"]),
            reward_name=data["reward"]["name"],
            reward_type=data["reward"]["type"],
            delivery_method="webhook",
            endpoint=None,
        )
    )
    assert json.loads(sent) == example


def test_the_example_of_a_receiver_verifies_what_is_sent(document: str) -> None:
    (code,) = blocks(document, "python")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    is_genuine = namespace["is_genuine"]
    other = "whsec_" + "B" * 40
    body = b'{"type":"reward.earned"}'
    headers = signed_headers(uuid.uuid4(), body, [other, SECRET], attempted_at=datetime.now(UTC))
    assert is_genuine(SECRET, headers, body) and is_genuine(other, headers, body)
    assert not is_genuine("whsec_" + "C" * 40, headers, body)
    assert not is_genuine(SECRET, headers, body + b" ")
    old = signed_headers(uuid.uuid4(), body, [SECRET], attempted_at=datetime(2025, 1, 1, tzinfo=UTC))
    assert not is_genuine(SECRET, old, body)
