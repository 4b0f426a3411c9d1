"""What the services write meanwhile; they wait out a database that is away, as real ones have to."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_URL, uuid5

import psycopg

from campaign_jobs.database.connection import Connection
from local.chaos.plan import Person, Plan, UserReward
from local.chaos.receiver import METHODS
from local.demo.services import endpoint_secret, insert_rows

PATIENCE_SECONDS: Final = 120
# No hold: whether somebody is held would depend on when the fraud job runs.
_FRAUD_POLICY: Final = {"policy": "flag"}


class Services:
    """Each call is one transaction, tried until the database takes it."""

    def __init__(self, database_url: str, plan: Plan) -> None:
        self._database_url = database_url
        self._plan = plan

    def set_up(self, endpoint_urls: dict[str, str]) -> None:
        """Everything that is there before the first event."""
        plan = self._plan

        def work(connection: Connection) -> None:
            insert_rows(
                connection,
                "campaigns",
                [
                    {
                        "id": campaign.id,
                        "name": campaign.name,
                        "status": campaign.status,
                        "timezone": campaign.timezone,
                        "points_per_referral": campaign.points,
                        "milestones": [1, 5, 10],
                        "position_email_min_delta": 5,
                        "position_email_cooldown": "24 hours",
                        "fraud_policy": _FRAUD_POLICY,
                        "created_at": "2026-01-01T00:00:00Z",
                    }
                    for campaign in plan.campaigns
                ],
            )
            self._insert_rewards(connection, endpoint_urls)
            there = [person for person in plan.people if person.cohort != "late"]
            self._insert_people(connection, there)
            self._insert_user_rewards(
                connection, [given for given in plan.user_rewards.values() if not given.is_late]
            )
            connection.execute(
                "INSERT INTO campaign_jobs.email_suppressions (address, reason)"
                " SELECT address, 'bounce' FROM unnest(%s::text[]) AS address",
                ([person.email for person in there if person.cohort == "suppressed"],),
            )
            connection.execute(
                "INSERT INTO campaign_jobs.email_unsubscribes (user_id) SELECT unnest(%s::uuid[])",
                ([person.id for person in there if person.cohort == "unsubscribed"],),
            )

        self._do(work)

    def add_people(self, people: Sequence[Person]) -> None:
        self._do(lambda connection: self._insert_people(connection, people))

    def add_user_rewards(self, user_rewards: Sequence[UserReward]) -> None:
        self._do(lambda connection: self._insert_user_rewards(connection, user_rewards))

    def verify_referrals(self, people: Iterable[object]) -> None:
        ids = list(people)
        self._do(
            lambda connection: connection.execute(
                "UPDATE campaign_jobs.referrals SET status = 'verified', verified_at = now()"
                " WHERE referred_id = ANY(%s) AND status = 'pending'",
                (ids,),
            )
        )

    def resume(self) -> None:
        """The paused campaigns go on."""
        self._do(
            lambda connection: connection.execute(
                "UPDATE campaign_jobs.campaigns SET status = 'active' WHERE status = 'paused'"
            )
        )

    def enable_endpoints(self) -> None:
        """What an operator does about endpoints that were disabled and are back."""
        self._do(
            lambda connection: connection.execute(
                "UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled' WHERE status = 'disabled'"
            )
        )

    def _do(self, work: Callable[[Connection], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with psycopg.connect(self._database_url, connect_timeout=5) as connection:
                    work(connection)
                return
            except psycopg.errors.UniqueViolation:
                # The commit's answer was lost, not the commit.
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _insert_rewards(self, connection: Connection, endpoint_urls: dict[str, str]) -> None:
        """For each campaign, an endpoint of each kind and a reward of each method."""
        names = [(campaign, method) for campaign in self._plan.campaigns for method in METHODS]
        insert_rows(
            connection,
            "webhook_endpoints",
            [
                {
                    "id": uuid_of(campaign.id, "endpoint", method),
                    "campaign_id": campaign.id,
                    "url": endpoint_urls[method],
                    "secret": endpoint_secret(method),
                    "status": "enabled",
                    "consecutive_failures": 0,
                    "created_at": "2026-01-01T00:00:00Z",
                }
                for campaign, method in names
            ],
        )
        insert_rows(
            connection,
            "rewards",
            [
                {
                    "id": uuid_of(campaign.id, "reward", method),
                    "campaign_id": campaign.id,
                    "name": f"A {method} reward",
                    "type": "custom",
                    "trigger_type": "manual",
                    "delivery_method": "webhook" if method in METHODS else method,
                    "webhook_endpoint_id": (
                        uuid_of(campaign.id, "endpoint", method) if method in METHODS else None
                    ),
                    "created_at": "2026-01-01T00:00:00Z",
                }
                for campaign in self._plan.campaigns
                for method in (*METHODS, "email", "manual")
            ],
        )

    def _insert_people(self, connection: Connection, people: Sequence[Person]) -> None:
        insert_rows(
            connection,
            "waitlist_users",
            [
                {
                    "id": person.id,
                    "campaign_id": person.campaign.id,
                    "email": person.email,
                    "first_name": "Chaos",
                    "status": person.cohort if person.cohort in ("verified", "removed") else "pending",
                    "verified_at": "2026-01-02T00:00:00Z" if person.cohort == "verified" else None,
                    "original_position": person.original_position,
                    "referral_code": person.id.hex,
                    "verification_token": person.id.hex,
                    "referred_by_id": person.referred_by,
                    # Analytics counts a row again that is committed late, but not months late.
                    "created_at": (
                        datetime.now(UTC)
                        if person.cohort == "late"
                        else f"2026-01-01T00:{person.original_position % 60:02}:00Z"
                    ),
                    "touched_at": "2026-01-01T00:00:00Z",
                }
                for person in people
            ],
        )
        insert_rows(
            connection,
            "referrals",
            [
                {
                    "id": uuid_of(person.id, "referral", ""),
                    "campaign_id": person.campaign.id,
                    "referrer_id": person.referred_by,
                    "referred_id": person.id,
                    "status": "pending",
                    "created_at": "2026-01-01T00:00:00Z",
                    "touched_at": "2026-01-01T00:00:00Z",
                }
                for person in people
                if person.referred_by is not None
            ],
        )

    def _insert_user_rewards(self, connection: Connection, user_rewards: Sequence[UserReward]) -> None:
        insert_rows(
            connection,
            "user_rewards",
            [
                {
                    "id": given.id,
                    "campaign_id": given.person.campaign.id,
                    "user_id": given.person.id,
                    "reward_id": uuid_of(given.person.campaign.id, "reward", given.method),
                    "occurrence": given.occurrence,
                    "status": "earned",
                    "attempts": 0,
                    "data": {"code": given.id.hex[:8]},
                    "earned_at": "2026-01-03T00:00:00Z",
                }
                for given in user_rewards
            ],
        )


def uuid_of(owner: object, kind: str, name: str) -> str:
    """The same id for the same thing."""
    return str(uuid5(NAMESPACE_URL, f"chaos:{owner}:{kind}:{name}"))
