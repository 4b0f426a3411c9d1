"""A campaign with rewards in the database, and a reward job over it, for the tests of deliveries."""

import base64
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs.events import RewardDeliveryJobPayload, RewardEvent
from campaign_jobs.worker.delivery import Coordinates, Deadline, Delivery

SECRET = "whsec_" + base64.b64encode(b"current secret of 30 bytes ...").decode()
PREVIOUS_SECRET = "whsec_" + base64.b64encode(b"previous secret of 30 bytes ..").decode()


def deadline(seconds: float = 100) -> Deadline:
    return Deadline.of_invocation(lambda: int(seconds * 1000))


def delivery_of(
    user_reward: UUID, *, event_id: str | None = None, attempts_spent: int = 0, age: timedelta = timedelta()
) -> Delivery[RewardEvent]:
    now = datetime.now(UTC)
    event = RewardEvent(
        id=event_id or str(uuid.uuid4()),
        type="job.reward.deliver",
        data=RewardDeliveryJobPayload(user_reward_id=user_reward),
        timestamp=now,
    )
    return Delivery(event, Coordinates("job-events", 0, 0), attempts_spent, now - age)


@dataclass
class Campaign:
    """Services' writes to one campaign, and a look at what the reward job made of them."""

    connection: Connection
    id: UUID = field(default_factory=uuid.uuid4)
    people: int = 0

    def __post_init__(self) -> None:
        self.connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Launch')", (self.id,)
        )

    def add_user(self) -> UUID:
        user = uuid.uuid4()
        self.people += 1
        self.connection.execute(
            "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)"
            " VALUES (%s, %s, %s, %s)",
            (user, self.id, f"person{self.people}@example.org", self.people),
        )
        return user

    def add_endpoint(self, url: str) -> UUID:
        endpoint = uuid.uuid4()
        self.connection.execute(
            "INSERT INTO campaign_jobs.webhook_endpoints (id, campaign_id, url, secret) VALUES (%s, %s, %s, %s)",
            (endpoint, self.id, url, SECRET),
        )
        return endpoint

    def add_reward(self, method: str, endpoint: UUID | None = None) -> UUID:
        reward = uuid.uuid4()
        self.connection.execute(
            "INSERT INTO campaign_jobs.rewards"
            " (id, campaign_id, name, type, trigger_type, trigger_value, delivery_method, webhook_endpoint_id)"
            " VALUES (%s, %s, 'Early access', 'early_access', 'referral_count', 3, %s, %s)",
            (reward, self.id, method, endpoint),
        )
        return reward

    def earn(self, reward: UUID, user: UUID | None = None) -> UUID:
        user_reward = uuid.uuid4()
        self.connection.execute(
            "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, data)"
            """ VALUES (%s, %s, %s, %s, '{"code": "LAUNCH-1"}')""",
            (user_reward, self.id, user or self.add_user(), reward),
        )
        return user_reward

    def open_case(self, user_reward: UUID, *, status: str = "open", holding: bool = True) -> UUID:
        row = self.connection.execute(
            "INSERT INTO campaign_jobs.fraud_cases"
            " (campaign_id, user_id, status, holding, risk_score, evidence, rules_version, decided_at, decision_reason)"
            " SELECT campaign_id, user_id, %(status)s, %(holding)s, 90, '[]', '1',"
            " CASE WHEN %(status)s = 'confirmed' THEN now() END, CASE WHEN %(status)s = 'confirmed' THEN 'seen' END"
            " FROM campaign_jobs.user_rewards WHERE id = %(user_reward)s RETURNING id",
            {"user_reward": user_reward, "status": status, "holding": holding},
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def block(self, user_reward: UUID) -> UUID:
        """An open case whose campaign's policy is to block, and what the fraud job did about it."""
        case = self.open_case(user_reward)
        self.connection.execute(
            "WITH blocked AS (UPDATE campaign_jobs.fraud_cases SET blocking = true, blocked_from = 'pending'"
            " WHERE id = %s RETURNING user_id) UPDATE campaign_jobs.waitlist_users SET status = 'blocked'"
            " FROM blocked WHERE id = user_id",
            (case,),
        )
        return case

    def dismiss(self, case: UUID) -> None:
        self.connection.execute(
            "UPDATE campaign_jobs.fraud_cases SET status = 'dismissed', decided_at = now(), decision_reason = 'seen'"
            " WHERE id = %s",
            (case,),
        )

    def row(self, user_reward: UUID, columns: str = "status") -> tuple[Any, ...]:
        row = self.connection.execute(
            f"SELECT {columns} FROM campaign_jobs.user_rewards WHERE id = %s", (user_reward,)
        ).fetchone()
        assert row is not None
        return row

    def endpoint(self, endpoint: UUID, columns: str = "status") -> tuple[Any, ...]:
        row = self.connection.execute(
            f"SELECT {columns} FROM campaign_jobs.webhook_endpoints WHERE id = %s", (endpoint,)
        ).fetchone()
        assert row is not None
        return row

    def rested(self) -> None:
        """The endpoints' rests are over."""
        self.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET rests_until = now()")

    def emitted(self) -> list[dict[str, Any]]:
        """The events in the outbox that wait to be published."""
        rows = self.connection.execute(
            "SELECT event FROM campaign_jobs.outbox WHERE published_at IS NULL ORDER BY id"
        ).fetchall()
        return [json.loads(json.dumps(row[0])) for row in rows]

    def publish_all(self) -> None:
        self.connection.execute("UPDATE campaign_jobs.outbox SET published_at = now()")
