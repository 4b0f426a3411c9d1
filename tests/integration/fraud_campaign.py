"""A campaign in the database for the tests of fraud, and what the fraud job made of it."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from campaign_jobs.database.connection import Connection

LAUNCH = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"


@dataclass
class Campaign:
    """Services' writes to one campaign."""

    connection: Connection
    policy: Mapping[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=uuid.uuid4)

    def __post_init__(self) -> None:
        self.numbers = count(1)
        self.connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name, fraud_policy) VALUES (%s, 'Launch', %s)",
            (self.id, json.dumps(self.policy)),
        )

    def set_policy(self, policy: Mapping[str, Any]) -> None:
        self.connection.execute(
            "UPDATE campaign_jobs.campaigns SET fraud_policy = %s WHERE id = %s",
            (json.dumps(policy), self.id),
        )

    def user(
        self,
        *,
        email: str | None = None,
        ip: str | None = None,
        device: str | None = None,
        user_agent: str | None = BROWSER,
        at: timedelta = timedelta(),
    ) -> UUID:
        """A verified user; what is not given is like nobody else's."""
        user, number = uuid.uuid4(), next(self.numbers)
        self.connection.execute(
            "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, status, verified_at,"
            " ip, device_fingerprint, user_agent, created_at)"
            " VALUES (%s, %s, %s, %s, 'verified', now(), %s, %s, %s, %s)",
            (
                user,
                self.id,
                email or f"person{number}@example.org",
                number,
                ip,
                device,
                user_agent,
                LAUNCH + at,
            ),
        )
        return user

    def refer(self, referrer: UUID, referred: UUID, at: timedelta = timedelta()) -> UUID:
        referral = uuid.uuid4()
        self.connection.execute(
            "INSERT INTO campaign_jobs.referrals"
            " (id, campaign_id, referrer_id, referred_id, status, verified_at, created_at)"
            " VALUES (%s, %s, %s, %s, 'verified', now(), %s)",
            (referral, self.id, referrer, referred, LAUNCH + at),
        )
        return referral

    def change(self, user: UUID, **columns: Any) -> None:
        for name, value in columns.items():
            self.connection.execute(
                f"UPDATE campaign_jobs.waitlist_users SET {name} = %s WHERE id = %s".encode(), (value, user)
            )

    def reward(self, user: UUID, *, held: bool = True) -> UUID:
        """A reward that the user earned, and whose delivery a hold stopped."""
        reward, user_reward = uuid.uuid4(), uuid.uuid4()
        self.connection.execute(
            "INSERT INTO campaign_jobs.rewards (id, campaign_id, name, type, trigger_type, delivery_method)"
            " VALUES (%s, %s, 'A month free', 'discount', 'manual', 'email')",
            (reward, self.id),
        )
        self.connection.execute(
            "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, held_at)"
            " VALUES (%s, %s, %s, %s, CASE WHEN %s THEN now() END)",
            (user_reward, self.id, user, reward, held),
        )
        return user_reward


def signals(connection: Connection) -> list[tuple[Any, ...]]:
    """All that a run can make of signals, but for when."""
    return connection.execute(
        'SELECT user_id, "check", evidence_key, campaign_id, weight, magnitude, related_user_id, evidence'
        " FROM campaign_jobs.fraud_signals ORDER BY 1, 2, 3"
    ).fetchall()


def found(connection: Connection, user: UUID) -> dict[str, int]:
    """The weight that each check gives the user."""
    return dict(
        connection.execute(
            'SELECT "check", max(weight) FROM campaign_jobs.fraud_signals WHERE user_id = %s GROUP BY 1',
            (user,),
        ).fetchall()
    )


def open_cases(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT user_id, campaign_id, risk_score, holding, blocking, evidence FROM campaign_jobs.fraud_cases"
        " WHERE status = 'open' ORDER BY 1"
    ).fetchall()


def case_of(connection: Connection, user: UUID) -> UUID:
    row = connection.execute(
        "SELECT id FROM campaign_jobs.fraud_cases WHERE user_id = %s AND status = 'open'", (user,)
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def status_of(connection: Connection, user: UUID) -> str:
    row = connection.execute(
        "SELECT status FROM campaign_jobs.waitlist_users WHERE id = %s", (user,)
    ).fetchone()
    assert row is not None
    return str(row[0])
