"""The fraud job: a scan of what changed since the last one, of everything when the rules did."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any, Final
from uuid import UUID

from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.fraud import lists
from campaign_jobs.fraud.assessing import bring_cases_up_to_date
from campaign_jobs.fraud.blocking import block, unblock
from campaign_jobs.fraud.decisions import read_stored_policy
from campaign_jobs.fraud.scan import scan


class StatisticsNotReadable(CampaignJobsError):
    """The database role does not see when other roles' transactions began, so that no watermark can be trusted."""


@dataclass(frozen=True)
class FraudReport:
    """What one run did."""

    overlapping: bool = False
    """Another run was going on, so this one left at once."""
    full: bool = False
    """Everything was scanned, rather than what changed since the watermark."""
    users_scanned: int = 0
    signals_added: int = 0
    signals_updated: int = 0
    signals_retracted: int = 0
    cases_opened: int = 0
    cases_updated: int = 0
    cases_retracted: int = 0
    holding: int = 0
    """Users whose credit and rewards are withheld, after the run."""
    blocked: int = 0
    unblocked: int = 0
    invalid_policies: tuple[str, ...] = ()
    """Campaigns whose fraud_policy is wrong, each with the reason; the default one is in force there."""
    rules_version: str = ""


def counts(report: FraudReport) -> dict[str, float]:
    """The report's figures for the metrics: as `records` the users scanned; of the policies, how many are wrong."""
    figures = {name: float(value) for name, value in asdict(report).items() if isinstance(value, int)}
    figures["records"] = figures.pop("users_scanned")
    return {**figures, "invalid_policies": float(len(report.invalid_policies))}


_TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('campaign_jobs.fraud', 0))"

_MAY_READ_STATISTICS: Final = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_user"

# touched_at is the start of the writing transaction. The few seconds cover a transaction that has taken its start time
# and not yet shown it, and a clock that is set back a little; looking at a change twice does no harm.
_OLDEST_TRANSACTION: Final = """
SELECT (min(xact_start) - interval '5 seconds')::text
FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND backend_type <> 'autovacuum worker'
"""

# Nothing says when a prepared transaction began, only when it was prepared.
_ANY_PREPARED: Final = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts WHERE database = current_database())"
)

_READ_PROGRESS: Final = """
SELECT watermark::text, rules_version FROM campaign_jobs.job_watermarks WHERE job_type = 'fraud'
"""

_WRITE_PROGRESS: Final = """
INSERT INTO campaign_jobs.job_watermarks (job_type, watermark, rules_version) VALUES ('fraud', %s, %s)
ON CONFLICT (job_type) DO UPDATE
SET watermark = EXCLUDED.watermark, rules_version = EXCLUDED.rules_version, updated_at = now()
"""

# As texts: one that Python cannot read must not keep the others from being read.
_READ_POLICIES: Final = "SELECT id, fraud_policy::text FROM campaign_jobs.campaigns ORDER BY id"

_COUNT_HELD: Final = "SELECT count(*) FROM campaign_jobs.held_users"

_RULES_FILES: Final = ("checks.py", "decisions.py", "scan.py", "assessing.py")


class FraudJob:
    """Finds fraud, keeps signals and cases up to date, and blocks where a campaign's policy says so."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, event: Mapping[str, Any]) -> FraudReport:  # noqa: ARG002 - every scheduled job takes it
        """Scan once. `event` is EventBridge's and says nothing that matters: a late or doubled tick does no harm.

        Raises StatisticsNotReadable and DatabaseUnavailable; the next run makes up for a failed one.
        """
        report = repeat_on_conflict(self._database, _scan_and_assess)
        if report.overlapping:
            return report
        # In a transaction of its own, so that services never wait for a scan to finish. Were the process to end before,
        # the next run would block: who is to be blocked is derived from the cases.
        unblocked, blocked, holding = repeat_on_conflict(
            self._database,
            lambda connection: (unblock(connection), block(connection), int(_value(connection, _COUNT_HELD))),
        )
        return replace(report, blocked=blocked, unblocked=unblocked, holding=holding)


def _scan_and_assess(connection: Connection) -> FraudReport:
    """One run, in one READ COMMITTED transaction.

    The order makes it sound. (1) The lock: what the previous run committed is visible to every statement after it.
    (2) The next watermark: no transaction that is invisible to a later statement began before it, because such a one is
    still running when it is read, or begins afterwards. (3) The scan. Its statements see different moments, and that is
    enough: each check recomputes its key groups in one statement, and whatever is committed after (2) is touched at or
    after the next watermark, so the next run looks at all its groups again. A single snapshot would add nothing but
    serialization failures against every service that updates a user meanwhile.
    """
    if not _value(connection, _TRY_LOCK):
        return FraudReport(overlapping=True)
    next_watermark = _next_watermark(connection)
    stored: dict[UUID, str] = dict(connection.execute(_READ_POLICIES).fetchall())
    rules_version = _rules_version(stored)
    progress = connection.execute(_READ_PROGRESS).fetchone()
    watermark = progress[0] if progress is not None and progress[1] == rules_version else None

    read = {campaign_id: read_stored_policy(policy) for campaign_id, policy in stored.items()}
    policies = {campaign_id: policy for campaign_id, (policy, _) in read.items()}
    scanned = scan(connection, policies, watermark)
    assessed = bring_cases_up_to_date(connection, policies, rules_version)

    if next_watermark is None and progress is not None:
        next_watermark = progress[0]
    if next_watermark is not None:
        connection.execute(_WRITE_PROGRESS, [next_watermark, rules_version])
    return FraudReport(
        full=watermark is None,
        users_scanned=scanned.users,
        signals_added=scanned.signals_added,
        signals_updated=scanned.signals_updated,
        signals_retracted=scanned.signals_retracted,
        cases_opened=assessed.cases_opened,
        cases_updated=assessed.cases_updated,
        cases_retracted=assessed.cases_retracted,
        invalid_policies=tuple(
            f"campaign {campaign_id}: {problem}" for campaign_id, (_, problem) in read.items() if problem
        ),
        rules_version=rules_version,
    )


def _next_watermark(connection: Connection) -> str | None:
    """The start of the oldest running transaction; None while a prepared one keeps the watermark where it is.

    Running ones are read first, so that one that is being prepared meanwhile is seen in one place or the other.
    """
    row = connection.execute(_MAY_READ_STATISTICS).fetchone()
    assert row is not None
    if not row[0]:
        raise StatisticsNotReadable(
            f'the database role "{row[1]}" must be a member of pg_read_all_stats '
            f'(GRANT pg_read_all_stats TO "{row[1]}"): without it, '
            "the start of other roles' transactions is hidden and their late commits would be missed"
        )
    oldest = _value(connection, _OLDEST_TRANSACTION)
    return None if _value(connection, _ANY_PREPARED) else str(oldest)


def _rules_version(stored_policies: Mapping[UUID, str]) -> str:
    """A digest of all that results depend on besides the data: rules, lists, and the policies that are not empty."""
    digest = hashlib.sha256()
    for name in _RULES_FILES:
        digest.update(resources.files(__package__).joinpath(name).read_bytes())
    digest.update(lists.versions().encode())
    for campaign_id, policy in stored_policies.items():
        if policy != "{}":
            digest.update(f"{campaign_id} {policy}".encode())
    return digest.hexdigest()[:16]


def _value(connection: Connection, statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]
