"""A campaign whose mail is sent, and a sender that records, for the tests of the email job."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.ses import Accepted, Mail, SendResult
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.events import EmailEvent, parse
from campaign_jobs.worker.delivery import Coordinates, Delivery
from tests.integration.reward_campaign import Campaign

DEFAULT_SENDER = "hello@mail.example.com"
UNSUBSCRIBE_KEY = b"a key of at least thirty-two bytes"
UNSUBSCRIBE_LINKS = UnsubscribeLinks("https://mail.example.com", KeyRing(lambda: (UNSUBSCRIBE_KEY,)))
UNSUBSCRIBE_SETTINGS = {
    "UNSUBSCRIBE_URL": "https://mail.example.com",
    "UNSUBSCRIBE_KEYS": UNSUBSCRIBE_KEY.decode(),
}


def delivery_of(
    event: dict[str, Any], *, attempts_spent: int = 0, age: timedelta = timedelta()
) -> Delivery[EmailEvent]:
    now = datetime.now(UTC)
    parsed = parse(event, recorded_at=now)
    assert isinstance(parsed, EmailEvent)
    return Delivery(parsed, Coordinates("job-events", 0, 0), attempts_spent, now - age)


@dataclass
class RecordingSender:
    """Accepts every mail, or does what `answer` says."""

    answer: Callable[[Mail], SendResult | None] = lambda mail: None
    rate: float = 1_000_000
    accepted: list[Mail] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, mail: Mail) -> SendResult:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answer(mail)
        finally:
            with self._lock:
                self.at_once -= 1
        if answer is not None:
            return answer
        with self._lock:
            self.accepted.append(mail)
        return Accepted(f"message-{uuid.uuid4()}")

    def max_send_rate(self) -> float:
        return self.rate

    @property
    def sent(self) -> Counter[tuple[str, str]]:
        """How many mails of each type each address was sent."""
        return Counter((mail.tags["type"], mail.recipient) for mail in self.accepted)


@dataclass
class MailCampaign(Campaign):
    """Services' writes to a campaign that mails, and a look at what the email job made of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set(public_base_url="https://launch.example.com")

    def set(self, **columns: Any) -> None:
        for column, value in columns.items():
            self.connection.execute(
                f"UPDATE campaign_jobs.campaigns SET {column} = %s WHERE id = %s", (value, self.id)
            )

    def add_user(self, **columns: Any) -> UUID:
        user = super().add_user()
        self.change_user(
            user, verification_token=f"token-{user}", referral_code=f"code-{self.people}", **columns
        )
        return user

    def change_user(self, user: UUID, **columns: Any) -> None:
        for column, value in columns.items():
            self.connection.execute(
                f"UPDATE campaign_jobs.waitlist_users SET {column} = %s WHERE id = %s", (value, user)
            )

    def address(self, user: UUID) -> str:
        return str(self._one("SELECT email FROM campaign_jobs.waitlist_users WHERE id = %s", user))

    def rank(self, user: UUID, position: int) -> None:
        self.connection.execute(
            "INSERT INTO campaign_jobs.user_positions"
            " (user_id, campaign_id, position, score, last_enqueued_position, verified_referrals)"
            " VALUES (%s, %s, %s, %s, %s, 0)"
            " ON CONFLICT (user_id) DO UPDATE SET position = EXCLUDED.position",
            (user, self.id, position, position, position),
        )

    def add_template(self, type_: str = "welcome", *, everywhere: bool = False, **columns: Any) -> UUID:
        values = {
            "type": type_,
            "campaign_id": None if everywhere else self.id,
            "enabled": True,
            "subject": "Hello",
            "html": "<p>Hello</p>",
            "text": "Hello",
            **columns,
        }
        names = ", ".join(values)
        row = self.connection.execute(
            f"INSERT INTO campaign_jobs.email_templates ({names})"
            f" VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
            list(values.values()),
        ).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    def event(self, type_: str, user: UUID, event_id: str | None = None, **data: Any) -> dict[str, Any]:
        return {
            "id": event_id or str(uuid.uuid4()),
            "type": f"job.email.{type_}",
            "campaign_id": str(self.id),
            "data": {"type": type_, "campaign_id": str(self.id), "user_id": str(user), **data},
            "timestamp": "2025-01-01T12:00:00Z",
        }

    def asks(self, type_: str, user: UUID, event_id: str | None = None, **data: Any) -> Delivery[EmailEvent]:
        return delivery_of(self.event(type_, user, event_id, **data))

    def mail(self, delivery: Delivery[EmailEvent], columns: str = "status, reason") -> tuple[Any, ...] | None:
        return self.connection.execute(
            f"SELECT {columns} FROM campaign_jobs.email_messages WHERE event_id = %s", (delivery.event.id,)
        ).fetchone()

    def statuses(self) -> Counter[str]:
        rows = self.connection.execute(
            "SELECT status FROM campaign_jobs.email_messages WHERE campaign_id = %s", (self.id,)
        ).fetchall()
        return Counter(row[0] for row in rows)

    def let_claims_expire(self) -> None:
        self.connection.execute(
            "UPDATE campaign_jobs.email_messages SET claimed_until = now() - interval '1 second'"
            " WHERE status = 'claimed' AND campaign_id = %s",
            (self.id,),
        )

    def _one(self, query: str, *parameters: Any) -> Any:
        row = self.connection.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]


def claim_elsewhere(connection: Connection, delivery: Delivery[EmailEvent], once_key: str | None) -> None:
    """The claim that another invocation has on a mail."""
    data = delivery.event.data
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, once_key, status, claim_token, claimed_until)"
        " VALUES (%s, %s, %s, %s, %s, 'claimed', gen_random_uuid(), now() + interval '100 seconds')"
        " ON CONFLICT (event_id) DO UPDATE SET status = 'claimed', reason = NULL,"
        " claim_token = EXCLUDED.claim_token, claimed_until = EXCLUDED.claimed_until",
        (delivery.event.id, data.type, data.campaign_id, data.user_id, once_key),
    )
