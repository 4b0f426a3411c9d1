"""An incremental run equals a full one, whatever happened in whatever order."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud import job as fraud_job
from campaign_jobs.fraud.cases import confirm, dismiss
from campaign_jobs.fraud.job import FraudJob
from tests.integration.fraud_campaign import BROWSER, Campaign, case_of, open_cases, signals

# Few values and low thresholds, so that groups form and dissolve all the time.
POLICIES: list[dict[str, Any]] = [
    {
        "checks": {
            "velocity": {"threshold": 1},
            "duplicate_ip": {"threshold": 1},
            "duplicate_device": {"threshold": 1},
        }
    },
    {
        "policy": "block",
        "high_from": 40,
        "checks": {"velocity": {"threshold": 2}, "duplicate_ip": {"threshold": 2}},
    },
    {
        "ip_allowlist": ["192.0.2.1"],
        "checks": {"fake_email": {"enabled": False}, "duplicate_ip": {"threshold": 1}},
    },
]
MAILBOXES = st.sampled_from(["a@example.org", "b@example.org", "c@mailinator.com", None])
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", None])
DEVICES = st.sampled_from(["d1", "d2", None])
AGENTS = st.sampled_from(["curl/8", BROWSER])
USERS = st.integers(0, 6)

JOIN = st.tuples(st.just("join"), MAILBOXES, ADDRESSES, DEVICES, AGENTS)
STEPS = st.one_of(
    JOIN,
    st.tuples(st.just("refer"), USERS, USERS, st.integers(0, 3)),
    st.tuples(st.just("refer"), USERS, USERS, st.integers(0, 3)),
    st.tuples(st.just("email"), USERS, MAILBOXES),
    st.tuples(st.just("ip"), USERS, ADDRESSES),
    st.tuples(st.just("device_fingerprint"), USERS, DEVICES),
    st.tuples(st.just("user_agent"), USERS, AGENTS),
    st.tuples(st.just("status"), USERS, st.sampled_from(["removed", "verified", "blocked"])),
    st.tuples(st.just("move"), USERS, USERS),
    st.tuples(st.just("unrefer"), USERS),
    st.tuples(st.just("policy"), st.sampled_from(POLICIES)),
    st.tuples(st.just("decide"), USERS, st.sampled_from([confirm, dismiss, dismiss])),
    st.tuples(st.just("run")),
    st.tuples(st.just("run")),
)


class History:
    """One campaign, and the steps that services, operators and the schedule take in it."""

    def __init__(self, connection: Connection, job: FraudJob) -> None:
        self.connection, self.job = connection, job
        self.campaign = Campaign(connection, policy=POLICIES[0])
        self.users: list[UUID] = []

    def take(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        if name == "run":
            self.job.run({})
        elif name == "join":
            mailbox, ip, device, user_agent = arguments
            email = self.address(mailbox, len(self.users))
            self.users.append(self.campaign.user(email=email, ip=ip, device=device, user_agent=user_agent))
        elif name == "policy":
            self.campaign.set_policy(arguments[0])
        elif arguments[0] < len(self.users):
            self.change(name, arguments[0], *arguments[1:])

    def change(self, name: str, number: int, value: Any = None, hours: int = 0) -> None:
        user = self.users[number]
        if name == "refer":
            referred = self.connection.execute("SELECT referred_id FROM campaign_jobs.referrals").fetchall()
            if value < len(self.users) and value != number and (self.users[value],) not in referred:
                self.campaign.refer(user, self.users[value], at=timedelta(minutes=30 * hours))
        elif name == "move":
            if value < len(self.users):
                self.connection.execute(
                    "UPDATE campaign_jobs.referrals SET referrer_id = %s WHERE referred_id = %s AND referred_id <> %s",
                    (self.users[value], user, self.users[value]),
                )
        elif name == "unrefer":
            self.connection.execute("DELETE FROM campaign_jobs.referrals WHERE referred_id = %s", (user,))
        elif name == "decide":
            if any(row[0] == user for row in open_cases(self.connection)):
                with self.connection.transaction():
                    value(self.connection, case_of(self.connection, user), reason="looked into")
        else:
            self.campaign.change(user, **{name: self.address(value, number) if name == "email" else value})

    @staticmethod
    def address(mailbox: str | None, number: int) -> str:
        return f"own{number}@example.org" if mailbox is None else mailbox.replace("@", f"+{number}@")


@pytest.fixture
def no_margin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The seconds by which the watermark lies back would make every run of a short history a full one."""
    statement = fraud_job._OLDEST_TRANSACTION
    monkeypatch.setattr(fraud_job, "_OLDEST_TRANSACTION", statement.replace("5 seconds", "0 seconds"))
    return  # type: ignore[return-value]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.lists(JOIN, min_size=6, max_size=6), steps=st.lists(STEPS, min_size=5, max_size=30))
def test_incremental_equals_full(
    database: Database, database_url: str, no_margin: None, people: list[Any], steps: list[Any]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE campaign_jobs.campaigns, campaign_jobs.job_watermarks CASCADE")
        job = FraudJob(database)
        history = History(connection, job)
        for step in [*people, ("run",), *steps]:
            history.take(step)
        # Twice, as the first one blocks and unblocks users, which changes them.
        job.run({})
        incremental = job.run({})
        assert not incremental.full
        kept = signals(connection), open_cases(connection)
        connection.execute("TRUNCATE campaign_jobs.fraud_signals")
        connection.execute("DELETE FROM campaign_jobs.job_watermarks")
        assert job.run({}).full
        assert kept == (signals(connection), open_cases(connection))
