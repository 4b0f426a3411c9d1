"""A release's migrations are applied while the code of the one before still runs, and a rollback brings that back."""

import re
from importlib.resources import files

import pytest

from campaign_jobs.database import migrations

UNRELEASED_BEFORE = "0012"
"""What came earlier was applied nowhere while other code was running."""

HURTS = {
    r"\bDROP\s+(TABLE|COLUMN|VIEW|SCHEMA)\b": "the code before still reads it; drop it a release later",
    r"\bRENAME\b": "the code before knows the old name; add the new one beside it",
    r"\bALTER\s+COLUMN\s+\S+\s+(SET\s+DATA\s+)?TYPE\b": "it rewrites the table under a lock; add a column",
    r"\bSET\s+NOT\s+NULL\b": "the code before may write none; add a default first",
    r"\bADD\s+COLUMN\s+(?:(?!,|;|\bDEFAULT\b).)*\bNOT\s+NULL\b(?:(?!,|;|\bDEFAULT\b).)*(,|;)": (
        "the code before writes no value; give it a default"
    ),
}


def hurts(sql: str) -> list[str]:
    """Why a migration would break the code that still runs; nothing where it would not."""
    plain = re.sub(r"--[^\n]*", "", sql)
    return [why for pattern, why in HURTS.items() if re.search(pattern, plain, re.IGNORECASE | re.DOTALL)]


@pytest.mark.parametrize(
    "name", [name for name in migrations.names() if name >= UNRELEASED_BEFORE] or ["none"]
)
def test_the_code_of_the_release_before_works_with_the_schema(name: str) -> None:
    if name != "none":
        assert hurts(files(migrations).joinpath(f"{name}.sql").read_text()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE campaign_jobs.outbox DROP COLUMN event;",
        "drop table campaign_jobs.outbox;",
        "ALTER TABLE campaign_jobs.outbox RENAME COLUMN event TO value;",
        "ALTER TABLE campaign_jobs.outbox ALTER COLUMN event TYPE text;",
        "ALTER TABLE campaign_jobs.outbox ALTER COLUMN event SET NOT NULL;",
        "ALTER TABLE campaign_jobs.outbox ADD COLUMN a integer NOT NULL;",
        (
            "ALTER TABLE campaign_jobs.outbox ADD COLUMN a integer DEFAULT 1,"
            " ADD COLUMN b text NOT NULL CHECK (b > ''), ADD COLUMN c text;"
        ),
    ],
)
def test_what_would_break_it_is_found(sql: str) -> None:
    assert len(hurts(sql)) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "-- DROP TABLE is what we do not do\nCREATE TABLE campaign_jobs.beats (at timestamptz NOT NULL);",
        "ALTER TABLE campaign_jobs.outbox ADD COLUMN a integer NOT NULL DEFAULT 0, ADD COLUMN b text;",
        "ALTER TABLE campaign_jobs.outbox ADD COLUMN a integer DEFAULT 0 NOT NULL;",
        "DROP TRIGGER IF EXISTS touches ON campaign_jobs.referrals;",
    ],
)
def test_what_would_not_is_left_alone(sql: str) -> None:
    assert hurts(sql) == []
