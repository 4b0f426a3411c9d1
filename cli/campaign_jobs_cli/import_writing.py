"""From people in a file to rows of the services' tables: a few statements, whatever their number.

The file goes into a table of the session alone. There it is compared with itself and with the campaign, and from there
it is written in one transaction, so that it is there as a whole or not at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.errors import ForeignKeyViolation, UniqueViolation

from campaign_jobs_cli.errors import CommandError
from campaign_jobs_cli.import_reading import COLUMNS, Person, Problem
from campaign_jobs_cli.targets import Connection

TRIES: Final = 5
"""People sign up while we write; whoever took an address or a position meanwhile makes us look again."""

# A broken line is there for its address and code, so that whoever it referred is not reported for its fault.
_CREATE: Final = """
CREATE TEMPORARY TABLE imported (
    line integer PRIMARY KEY, broken boolean NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(),
    email text, email_key text GENERATED ALWAYS AS (lower(email)) STORED, first_name text, referral_code text,
    referred_by text, verified_at timestamptz, created_at timestamptz, original_position integer,
    verification_token text, marketing_consent_at timestamptz, ip inet, user_agent text, device_fingerprint text,
    existing_id uuid, referrer_line integer, referrer_id uuid
)
"""

# The first line with an address, a code or a position has it.
_REPEATED: Final = """
WITH repeated AS (
    SELECT line, first_value(line) OVER (PARTITION BY {column} ORDER BY line) AS first_line
    FROM imported WHERE {column} IS NOT NULL
)
UPDATE imported SET broken = true FROM repeated
WHERE imported.line = repeated.line AND repeated.line <> repeated.first_line
RETURNING imported.line, repeated.first_line
"""

_EXISTING: Final = """
UPDATE imported SET existing_id = users.id
FROM (SELECT line, existing.id FROM imported
    LEFT JOIN campaign_jobs.waitlist_users AS existing ON existing.campaign_id = %(campaign_id)s
        AND lower(existing.email) = imported.email_key AND existing.deleted_at IS NULL) AS users
WHERE imported.line = users.line AND imported.existing_id IS DISTINCT FROM users.id
"""

_TAKEN: Final = """
UPDATE imported SET broken = true FROM campaign_jobs.waitlist_users AS other
WHERE imported.existing_id IS NULL
    AND other.campaign_id = %(campaign_id)s AND other.{column} = imported.{column}
RETURNING imported.line
"""

# By address or by code; in the file first, because the campaign may know the person by another code.
_REFERRERS: Final = """
WITH found AS (
    SELECT person.line, referrer.line AS referrer_line, coalesce(referrer.existing_id, referrer.id) AS referrer_id
    FROM imported AS person JOIN imported AS referrer ON referrer.email_key = lower(person.referred_by)
    UNION ALL
    SELECT person.line, referrer.line, coalesce(referrer.existing_id, referrer.id)
    FROM imported AS person JOIN imported AS referrer ON referrer.referral_code = person.referred_by
    UNION ALL
    SELECT person.line, NULL, users.id FROM imported AS person
    JOIN campaign_jobs.waitlist_users AS users ON users.campaign_id = %(campaign_id)s
        AND lower(users.email) = lower(person.referred_by) AND users.deleted_at IS NULL
    UNION ALL
    SELECT person.line, NULL, users.id FROM imported AS person
    JOIN campaign_jobs.waitlist_users AS users
        ON users.campaign_id = %(campaign_id)s AND users.referral_code = person.referred_by
), first AS (
    SELECT DISTINCT ON (line) line, referrer_line, referrer_id FROM found ORDER BY line, referrer_line NULLS LAST
)
UPDATE imported SET referrer_line = first.referrer_line, referrer_id = first.referrer_id
FROM first WHERE imported.line = first.line
"""

_WRONG_REFERRERS: Final = """
UPDATE imported SET broken = true
WHERE existing_id IS NULL AND referred_by IS NOT NULL AND (referrer_id IS NULL OR referrer_id = id)
RETURNING line, referrer_id IS NULL AS nobody
"""

_LEFT_BEHIND: Final = """
UPDATE imported SET broken = true FROM imported AS referrer
WHERE NOT imported.broken AND imported.existing_id IS NULL AND referrer.line = imported.referrer_line
    AND referrer.broken AND referrer.existing_id IS NULL
RETURNING imported.line, referrer.line AS first_line
"""

_COUNT: Final = """
SELECT count(*)::integer AS lines,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NULL)::integer AS new_people,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NOT NULL)::integer AS already_there,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NULL AND verified_at IS NOT NULL)::integer AS verified,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NULL AND verified_at IS NULL)::integer AS pending,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NULL AND referrer_id IS NOT NULL)::integer AS referrals,
    count(*) FILTER (WHERE NOT broken AND existing_id IS NULL AND original_position IS NULL)::integer
        AS positions_assigned,
    min(least(created_at, verified_at)) FILTER (WHERE NOT broken AND existing_id IS NULL) AS earliest
FROM imported
"""

_INSERT_USERS: Final = """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, first_name, status, original_position,
    referral_code, referred_by_id, verification_token, verified_at, ip, user_agent, device_fingerprint,
    marketing_consent_at, created_at)
SELECT id, %(campaign_id)s, email, first_name, CASE WHEN verified_at IS NULL THEN 'pending' ELSE 'verified' END,
    coalesce(original_position, (
        SELECT greatest(
            coalesce((SELECT max(original_position) FROM campaign_jobs.waitlist_users
                WHERE campaign_id = %(campaign_id)s), 0),
            coalesce((SELECT max(original_position) FROM imported WHERE NOT broken AND existing_id IS NULL), 0))
    ) + (count(*) FILTER (WHERE original_position IS NULL) OVER (ORDER BY line))::integer),
    referral_code, referrer_id,
    -- Without one, a verification mail would be a dead letter. Two UUIDs: 244 random bits.
    CASE WHEN verified_at IS NULL
        THEN coalesce(verification_token, replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''))
        ELSE verification_token END,
    verified_at, ip, user_agent, device_fingerprint, marketing_consent_at, coalesce(created_at, now())
FROM imported WHERE NOT broken AND existing_id IS NULL ORDER BY line
"""

_INSERT_REFERRALS: Final = """
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, created_at, verified_at)
SELECT gen_random_uuid(), %(campaign_id)s, referrer_id, id,
    CASE WHEN verified_at IS NULL THEN 'pending' ELSE 'verified' END, coalesce(created_at, now()), verified_at
FROM imported WHERE NOT broken AND existing_id IS NULL AND referrer_id IS NOT NULL ORDER BY line
"""

_ENQUEUE: Final = """
INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)
SELECT event_id, id::text, jsonb_build_object(
    'id', event_id, 'type', 'job.email.' || %(type)s,
    'account_id', coalesce(account_id, %(campaign_id)s::uuid), 'campaign_id', %(campaign_id)s::uuid,
    'data', jsonb_build_object('type', %(type)s, 'campaign_id', %(campaign_id)s::uuid, 'user_id', id),
    'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
FROM (
    SELECT imported.id, imported.line, gen_random_uuid()::text AS event_id,
        (SELECT account_id FROM campaign_jobs.campaigns WHERE id = %(campaign_id)s) AS account_id
    FROM imported
    WHERE NOT broken AND existing_id IS NULL AND (verified_at IS NOT NULL) = (%(type)s::text = 'welcome')
) AS mail ORDER BY line
"""

_KEYS: Final = {
    "email": "email_key",
    "referral_code": "referral_code",
    "original_position": "original_position",
}


@dataclass(frozen=True)
class Written:
    people: int
    referrals: int
    verification_mails: int
    welcome_mails: int


@dataclass
class Import:
    """One file on its way into one campaign, on a connection of its own."""

    connection: Connection
    campaign_id: UUID

    def take(self, people: Iterable[Person]) -> None:
        """Copy the file's people into the session's table."""
        self.connection.execute(_CREATE)
        columns = ("line", "broken", *COLUMNS)
        statement = sql.SQL("COPY imported ({}) FROM STDIN").format(
            sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for person in people:
                values = person.values
                copy.write_row((person.line, bool(person.problems), *(values.get(name) for name in COLUMNS)))
        self.connection.execute("ANALYZE imported")

    def check(self) -> list[Problem]:
        """What is wrong within the file, and against the campaign. Such lines are broken from then on."""
        problems = [
            Problem(row["line"], column, f"it is in line {row['first_line']} already")
            for column, key in _KEYS.items()
            for row in self._rows(_REPEATED.format(column=key))
        ]
        self.connection.execute(_EXISTING, self._parameters)
        problems += [
            Problem(row["line"], column, "somebody of the campaign has it already")
            for column in ("referral_code", "original_position")
            for row in self._rows(_TAKEN.format(column=column))
        ]
        self.connection.execute(_REFERRERS, self._parameters)
        problems += [
            Problem(
                row["line"],
                "referred_by",
                "nobody has this code or address, in the file or in the campaign"
                if row["nobody"]
                else "it is the person's own",
            )
            for row in self._rows(_WRONG_REFERRERS)
        ]
        return problems

    def leave_behind(self) -> list[Problem]:
        """Break the lines whose referrer is left out, and so on: they cannot be written without."""
        problems: list[Problem] = []
        while rows := self._rows(_LEFT_BEHIND):
            problems += [
                Problem(
                    row["line"], "referred_by", f"line {row['first_line']} is left out, so this one is, too"
                )
                for row in rows
            ]
        return problems

    def counts(self) -> dict[str, Any]:
        row = self.connection.execute(_COUNT).fetchone()
        assert row is not None
        return row

    def write(self, *, verification: bool, welcome: bool) -> Written:
        """Write everybody who is new, their referrals and the mails that are wanted, in one transaction.

        Raises CommandError where others sign up faster than we can look.
        """
        for _ in range(TRIES):
            try:
                with self.connection.transaction():
                    self.connection.execute(_EXISTING, self._parameters)
                    self.connection.execute(_REFERRERS, self._parameters)
                    return Written(
                        people=self._written(_INSERT_USERS),
                        referrals=self._written(_INSERT_REFERRALS),
                        verification_mails=self._written(_ENQUEUE, "verification") if verification else 0,
                        welcome_mails=self._written(_ENQUEUE, "welcome") if welcome else 0,
                    )
            except (UniqueViolation, ForeignKeyViolation) as error:
                lost: psycopg.Error = error
        raise CommandError(
            f"somebody has taken the same address, code or position each time ({lost.diag.constraint_name}); "
            "nothing was written: run it again"
        ) from lost

    def _rows(self, statement: str) -> list[dict[str, Any]]:
        return self.connection.execute(statement, self._parameters).fetchall()

    def _written(self, statement: str, type_: str | None = None) -> int:
        return self.connection.execute(statement, {**self._parameters, "type": type_}).rowcount

    @property
    def _parameters(self) -> dict[str, Any]:
        return {"campaign_id": self.campaign_id}
