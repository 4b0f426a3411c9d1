"""What the services write: campaigns, users, referrals and rewards, a few statements for everybody."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, LiteralString
from uuid import UUID

from campaign_jobs.database.connection import Connection
from local.demo.cast import MAIN_CAMPAIGN, Cast, Person
from local.demo.expectations import ExpectedReward

BROKEN_TEMPLATE = "<p>Welcome!</p>\n<p>{{ nobody.knows.this }}</p>"


def create_campaigns(connection: Connection, cast: Cast, endpoint_urls: dict[str, str]) -> None:
    """Campaigns with their endpoints, rewards, and a template that somebody has not finished."""
    insert_rows(
        connection,
        "campaigns",
        [
            {
                "id": cast.campaign_id(campaign.key),
                "name": campaign.name,
                "status": campaign.status,
                "timezone": campaign.timezone,
                "points_per_referral": 1,
                "milestones": list(campaign.milestones),
                "from_name": f"{campaign.name} team",
                "public_base_url": f"https://{campaign.key}.example.com",
                "position_email_min_delta": campaign.position_email_min_delta,
                "position_email_cooldown": "24 hours",
                "fraud_policy": {},
                "created_at": cast.started_at,
            }
            for campaign in cast.campaigns.values()
        ],
    )
    used = {
        reward.endpoint: reward.campaign for reward in cast.rewards.values() if reward.endpoint is not None
    }
    insert_rows(
        connection,
        "webhook_endpoints",
        [
            {
                "id": cast.names.uuid("endpoint", endpoint),
                "campaign_id": cast.campaign_id(campaign),
                "url": endpoint_urls[endpoint],
                "secret": endpoint_secret(endpoint),
                "status": "enabled",
                "consecutive_failures": 0,
                "created_at": cast.started_at,
            }
            for endpoint, campaign in used.items()
        ],
    )
    insert_rows(
        connection,
        "rewards",
        [
            {
                "id": cast.names.uuid("reward", reward.key),
                "campaign_id": cast.campaign_id(reward.campaign),
                "name": reward.name,
                "description": reward.description,
                "type": reward.type,
                "trigger_type": "manual" if reward.referrals is None else "referral_count",
                "trigger_value": reward.referrals,
                "delivery_method": reward.method,
                "webhook_endpoint_id": reward.endpoint and cast.names.uuid("endpoint", reward.endpoint),
                "created_at": cast.started_at,
            }
            for reward in cast.rewards.values()
        ],
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_templates (id, campaign_id, type, subject, html, text)"
        " VALUES (%s, %s, 'verification', 'Please verify', %s, 'Welcome!')",
        (cast.names.uuid("template", "broken"), cast.campaign_id(MAIN_CAMPAIGN), BROKEN_TEMPLATE),
    )


def sign_up(connection: Connection, cast: Cast, people: Sequence[Person]) -> None:
    """Users and their referrals; who leaves at once is removed already."""
    insert_rows(
        connection,
        "waitlist_users",
        [
            {
                "id": cast.user_id(person.key),
                "campaign_id": cast.campaign_id(person.campaign),
                "email": person.email,
                "first_name": person.first_name,
                "status": "removed" if person.leaves == "at signup" else "pending",
                "original_position": cast.original_positions[person.key],
                "referral_code": f"{person.key}"[:64],
                "referred_by_id": person.referred_by and cast.user_id(person.referred_by),
                "verification_token": hashlib.sha256(f"{cast.names.run}{person.key}".encode()).hexdigest()[
                    :40
                ],
                "ip": person.ip,
                "user_agent": person.user_agent,
                "device_fingerprint": person.device,
                "created_at": cast.joined_at(person),
                # The trigger sets it; the column takes no null before.
                "touched_at": cast.started_at,
            }
            for person in people
        ],
    )
    insert_rows(
        connection,
        "referrals",
        [
            {
                "id": cast.names.uuid("referral", person.key),
                "campaign_id": cast.campaign_id(person.campaign),
                "referrer_id": cast.user_id(person.referred_by),
                "referred_id": cast.user_id(person.key),
                "status": "pending",
                "created_at": cast.joined_at(person),
                "touched_at": cast.started_at,
            }
            for person in people
            if person.referred_by is not None
        ],
    )


def suppress_and_unsubscribe(connection: Connection, cast: Cast) -> None:
    """What earlier campaigns left behind: an address that bounced, a user who wants no mail."""
    # An earlier launch in the same database may have suppressed what is to bounce in this one.
    connection.execute(
        "DELETE FROM campaign_jobs.email_suppressions WHERE address = ANY(%s)",
        ([person.email for person in cast.people.values() if person.bounces or person.complains],),
    )
    bounced = [person.email for person in cast.people.values() if person.bounced]
    unsubscribed = [cast.user_id(person.key) for person in cast.people.values() if person.unsubscribed]
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason)"
        " SELECT address, 'bounce' FROM unnest(%s::text[]) AS address ON CONFLICT DO NOTHING",
        (bounced,),
    )
    connection.execute(
        "INSERT INTO campaign_jobs.email_unsubscribes (user_id) SELECT unnest(%s::uuid[])", (unsubscribed,)
    )


def verify(connection: Connection, cast: Cast, people: Iterable[Person]) -> None:
    """Users who followed their link, the referrals that brought them, and those who left again."""
    verified = list(people)
    ids = [cast.user_id(person.key) for person in verified]
    left = [cast.user_id(person.key) for person in verified if person.leaves == "after verifying"]
    connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = 'verified', verified_at = now() WHERE id = ANY(%s)",
        (ids,),
    )
    connection.execute(
        "UPDATE campaign_jobs.referrals SET status = 'verified', verified_at = now() WHERE referred_id = ANY(%s)",
        (ids,),
    )
    connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = 'removed', deleted_at = now() WHERE id = ANY(%s)",
        (left,),
    )


def earn(connection: Connection, cast: Cast, earned: Sequence[ExpectedReward]) -> None:
    """User rewards, each with a code of its own."""
    insert_rows(
        connection,
        "user_rewards",
        [
            {
                "id": user_reward_id(cast, reward),
                "campaign_id": cast.campaign_id(cast.rewards[reward.reward].campaign),
                "user_id": cast.user_id(reward.person),
                "reward_id": cast.names.uuid("reward", reward.reward),
                "occurrence": 1,
                "status": "earned",
                "attempts": 0,
                "data": {"code": f"{reward.reward}-{number:04d}".upper()},
                "earned_at": cast.started_at,
            }
            for number, reward in enumerate(earned, start=1)
        ],
    )


def user_reward_id(cast: Cast, reward: ExpectedReward) -> UUID:
    return cast.names.uuid("user_reward", f"{reward.reward}/{reward.person}")


def set_status(connection: Connection, campaign_id: UUID, status: str) -> None:
    connection.execute("UPDATE campaign_jobs.campaigns SET status = %s WHERE id = %s", (status, campaign_id))


def endpoint_secret(endpoint: str) -> str:
    """The secret that the receiver shares with us."""
    return "whsec_" + base64.b64encode(hashlib.sha256(endpoint.encode()).digest()).decode()


def insert_rows(connection: Connection, table: LiteralString, rows: Sequence[dict[str, Any]]) -> None:
    """All rows in one statement; PostgreSQL reads each value as its column's type."""
    if not rows:
        return
    from psycopg import sql

    columns = sql.SQL(", ").join(sql.Identifier(name) for name in rows[0])
    statement = sql.SQL(
        "INSERT INTO campaign_jobs.{table} ({columns}) SELECT {columns} FROM jsonb_populate_recordset("
        "NULL::campaign_jobs.{table}, %s::jsonb)"
    ).format(table=sql.Identifier(table), columns=columns)
    connection.execute(statement, (json.dumps(rows, default=str),))
