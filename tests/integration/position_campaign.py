"""A campaign in the database for the tests of positions."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs.events import PositionEvent
from campaign_jobs.worker.delivery import Coordinates, Deadline, Delivery

LAUNCH = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Campaign:
    """Services' writes to one campaign, and a look at what the position job made of them."""

    connection: Connection
    points: int = 1
    min_delta: int = 1
    id: UUID = field(default_factory=uuid.uuid4)

    def __post_init__(self) -> None:
        self.connection.execute(
            "INSERT INTO campaign_jobs.campaigns (id, name, points_per_referral, position_email_min_delta)"
            " VALUES (%s, 'Launch', %s, %s)",
            (self.id, self.points, self.min_delta),
        )

    def add_users(self, count: int) -> list[UUID]:
        """Users in the order of their original positions 1…count."""
        users = [uuid.uuid4() for _ in range(count)]
        self.add_user_rows([(user, number, "pending", LAUNCH) for number, user in enumerate(users, start=1)])
        return users

    def add_user_rows(self, rows: Sequence[tuple[UUID, int, str, datetime]]) -> None:
        """Users by id, original position, status and time of creation; one statement."""
        self.connection.execute(
            "INSERT INTO campaign_jobs.waitlist_users"
            " (id, campaign_id, email, original_position, status, verified_at, created_at)"
            " SELECT id, %s, id || '@example.org', original_position, status, now(), created_at"
            " FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::timestamptz[])"
            " AS person (id, original_position, status, created_at)",
            (self.id, *([row[column] for row in rows] for column in range(4))),
        )

    def refer(self, referrer: UUID, referred: UUID, status: str = "verified") -> None:
        refer(self.connection, self.id, referrer, referred, status)

    def hold(self, user: UUID, status: str = "open", holding: bool = True) -> None:
        self.connection.execute(
            "INSERT INTO campaign_jobs.fraud_cases (campaign_id, user_id, status, holding, risk_score, evidence,"
            " rules_version, decided_at, decision_reason)"
            " SELECT %(campaign)s, %(user)s, %(status)s, %(holding)s, 90, '[]', '1', moment, left(moment::text, 4)"
            " FROM (SELECT CASE WHEN %(status)s IN ('confirmed', 'dismissed') THEN now() END AS moment) AS decided",
            {"campaign": self.id, "user": user, "status": status, "holding": holding},
        )

    def set_status(self, user: UUID, status: str) -> None:
        self.connection.execute(
            "UPDATE campaign_jobs.waitlist_users SET status = %s WHERE id = %s", (status, user)
        )

    def request(self, event_id: str | None = None) -> None:
        """A request row, as an event's or (without an id) a trigger's."""
        self.connection.execute(
            "INSERT INTO campaign_jobs.position_requests (campaign_id, event_id) VALUES (%s, %s)",
            (self.id, event_id),
        )

    def positions(self) -> dict[UUID, int]:
        rows = self.connection.execute(
            "SELECT user_id, position FROM campaign_jobs.user_positions WHERE campaign_id = %s ORDER BY position",
            (self.id,),
        ).fetchall()
        return {row[0]: row[1] for row in rows}

    def waiting(self) -> int:
        return self._count("SELECT count(*) FROM campaign_jobs.position_requests WHERE campaign_id = %s")

    def runs(self) -> int:
        return self._count("SELECT runs FROM campaign_jobs.position_runs WHERE campaign_id = %s")

    def points_now(self) -> int:
        return self._count("SELECT points_per_referral FROM campaign_jobs.campaigns WHERE id = %s")

    def _count(self, query: str) -> int:
        row = self.connection.execute(query, (self.id,)).fetchone()
        assert row is not None
        return int(row[0])


def refer(
    connection: Connection, campaign_id: UUID, referrer: UUID, referred: UUID, status: str = "verified"
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status, verified_at)"
        " VALUES (%s, %s, %s, %s, %s, now())",
        (uuid.uuid4(), campaign_id, referrer, referred, status),
    )


def delivery(
    campaign_id: UUID,
    *,
    points: int = 0,
    event_id: str | None = None,
    timestamp: datetime = LAUNCH,
    waited: timedelta = timedelta(),
) -> Delivery[PositionEvent]:
    """An event as it comes from Kafka, first received `waited` ago."""
    event = PositionEvent.model_validate(
        {
            "id": event_id or str(uuid.uuid4()),
            "type": "job.position.recalculate",
            "data": {"campaign_id": campaign_id, "points_per_referral": points},
            "timestamp": timestamp,
        }
    )
    return Delivery(event, Coordinates("job-events", 0, 0), 0, datetime.now(UTC) - waited)


def far_deadline() -> Deadline:
    return Deadline.of_invocation(lambda: 300_000)
