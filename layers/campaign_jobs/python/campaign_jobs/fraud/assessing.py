"""From signals to cases: assesses the users whose signals changed, and opens, updates or retracts their cases."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs.fraud.decisions import Assessment, Policy, Signal, assess

WRITTEN_AT_ONCE: Final = 5_000

# A decision locks its case. Waiting for it here, in a statement of its own, lets the next one see what was dismissed.
_LOCK_OPEN_CASES: Final = """
SELECT FROM campaign_jobs.fraud_cases AS c JOIN pg_temp.fraud_affected USING (user_id)
WHERE c.status = 'open' ORDER BY c.id FOR UPDATE OF c
"""

# Whoever has a confirmed case is held for good, whatever else is found. Whose last signal is gone and who has no open
# case, because it weighed too little for one, is not looked at.
_READ: Final = """
SELECT
    affected.user_id, coalesce(s.campaign_id, c.campaign_id),
    c.id, c.risk_score, c.holding, c.blocking, c.evidence,
    s."check", s.evidence_key, s.weight, s.magnitude, s.evidence, d.band
FROM pg_temp.fraud_affected AS affected
LEFT JOIN campaign_jobs.fraud_cases AS c ON c.user_id = affected.user_id AND c.status = 'open'
LEFT JOIN campaign_jobs.fraud_signals AS s ON s.user_id = affected.user_id
LEFT JOIN campaign_jobs.fraud_dismissals AS d
    ON d.user_id = s.user_id AND d."check" = s."check" AND d.evidence_key = s.evidence_key
WHERE NOT EXISTS (
    SELECT FROM campaign_jobs.fraud_cases AS confirmed
    WHERE confirmed.user_id = affected.user_id AND confirmed.status = 'confirmed'
) AND (s.user_id IS NOT NULL OR c.id IS NOT NULL)
ORDER BY affected.user_id
"""

_OPEN: Final = """
INSERT INTO campaign_jobs.fraud_cases
    (campaign_id, user_id, holding, blocking, risk_score, evidence, rules_version)
SELECT campaign_id, user_id, holding, blocking, risk_score, evidence, %s
FROM jsonb_to_recordset(%s::jsonb) AS entry (
    campaign_id uuid, user_id uuid, holding boolean, blocking boolean, risk_score integer, evidence jsonb
)
"""

_UPDATE: Final = """
UPDATE campaign_jobs.fraud_cases AS c
SET holding = entry.holding, blocking = entry.blocking, risk_score = entry.risk_score, evidence = entry.evidence,
    rules_version = %s, updated_at = now()
FROM jsonb_to_recordset(%s::jsonb) AS entry (
    case_id uuid, holding boolean, blocking boolean, risk_score integer, evidence jsonb
)
WHERE c.id = entry.case_id
"""

# Of somebody who was erased while a run looked at them, nothing is kept.
_RETRACT: Final = """
UPDATE campaign_jobs.fraud_cases AS c
SET status = 'retracted', updated_at = now(),
    evidence = CASE WHEN u.email = campaign_jobs.address_of_erased(u.id) THEN '[]' ELSE evidence END
FROM campaign_jobs.waitlist_users AS u
WHERE c.id = ANY(%s::uuid[]) AND u.id = c.user_id
"""


@dataclass(frozen=True)
class Assessed:
    cases_opened: int
    cases_updated: int
    cases_retracted: int


@dataclass(frozen=True)
class _OpenCase:
    id: UUID
    risk_score: int
    holding: bool
    blocking: bool
    evidence: list[dict[str, Any]]

    def says(self, assessment: Assessment) -> bool:
        """Whether the case already is what the assessment would make of it."""
        return (self.risk_score, self.holding, self.blocking, self.evidence) == (
            assessment.risk_score,
            assessment.holding,
            assessment.blocking,
            assessment.evidence,
        )


@dataclass(frozen=True)
class _User:
    id: UUID
    campaign_id: UUID
    open_case: _OpenCase | None
    signals: list[Signal]


@dataclass
class _Changes:
    opened: list[dict[str, Any]] = field(default_factory=list)
    updated: list[dict[str, Any]] = field(default_factory=list)
    retracted: list[UUID] = field(default_factory=list)

    def add(self, user: _User, assessment: Assessment) -> None:
        content = {
            "holding": assessment.holding,
            "blocking": assessment.blocking,
            "risk_score": assessment.risk_score,
            "evidence": assessment.evidence,
        }
        if user.open_case is None:
            if assessment.makes_case:
                self.opened.append(
                    {
                        "user_id": str(user.id),
                        "campaign_id": str(user.campaign_id),
                        **content,
                    }
                )
        elif not assessment.makes_case:
            self.retracted.append(user.open_case.id)
        elif not user.open_case.says(assessment):
            self.updated.append({"case_id": str(user.open_case.id), **content})

    def __len__(self) -> int:
        return len(self.opened) + len(self.updated) + len(self.retracted)

    def write(self, connection: Connection, rules_version: str) -> None:
        if self.opened:
            connection.execute(_OPEN, [rules_version, json.dumps(self.opened)])
        if self.updated:
            connection.execute(_UPDATE, [rules_version, json.dumps(self.updated)])
        if self.retracted:
            connection.execute(_RETRACT, [self.retracted])


def bring_cases_up_to_date(
    connection: Connection, policies: Mapping[UUID, Policy], rules_version: str
) -> Assessed:
    """Look again at the case of everybody in pg_temp.fraud_affected; only what changed is written."""
    connection.execute(_LOCK_OPEN_CASES)
    opened = updated = retracted = 0
    changes = _Changes()
    for user in _affected_users(connection):
        changes.add(user, assess(user.signals, policies[user.campaign_id]))
        if len(changes) >= WRITTEN_AT_ONCE:
            changes.write(connection, rules_version)
            opened, updated, retracted = _sum(opened, updated, retracted, changes)
            changes = _Changes()
    changes.write(connection, rules_version)
    return Assessed(*_sum(opened, updated, retracted, changes))


def _sum(opened: int, updated: int, retracted: int, changes: _Changes) -> tuple[int, int, int]:
    return (
        opened + len(changes.opened),
        updated + len(changes.updated),
        retracted + len(changes.retracted),
    )


def _affected_users(connection: Connection) -> Iterator[_User]:
    """Each user with open case and signals, a portion at a time: there may be a million."""
    with connection.cursor(name="fraud_affected_users") as cursor:
        cursor.itersize = WRITTEN_AT_ONCE
        cursor.execute(_READ)
        for user_id, group in groupby(cursor, key=lambda row: row[0]):
            rows = list(group)
            campaign_id, case_id, risk_score, holding, blocking, case_evidence = rows[0][1:7]
            yield _User(
                id=user_id,
                campaign_id=campaign_id,
                open_case=None
                if case_id is None
                else _OpenCase(case_id, risk_score, holding, blocking, case_evidence),
                signals=[Signal(*row[7:]) for row in rows if row[7] is not None],
            )
