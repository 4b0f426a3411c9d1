"""What the launch left behind, read from the database, the dead-letter queues and the mail directory."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from campaign_jobs import catalog
from campaign_jobs.database.connection import Connection
from local.aws.mails import Mail, read_mails
from local.demo.cast import MAIN_CAMPAIGN, Cast
from local.demo.outcomes import Outcomes
from local.system import LocalSystem

LEADERBOARD_LENGTH: Final = 12
LEADERBOARDS: Final = {
    "before": "sign_up",
    "with_referrals": "verify",
    "with_holds": "look_for_fraud",
    "after": "decide",
}
"""The leaderboards that are kept, and the moments after which they are taken."""


@dataclass(frozen=True)
class Standing:
    """One line of a leaderboard."""

    position: int
    person: str
    original_position: int
    verified_referrals: int
    score: int


@dataclass(frozen=True)
class DeadLetter:
    queue: str
    reason: str
    attempts: int
    topic: str
    partition: int
    offset: int
    value: str | None


@dataclass(frozen=True)
class Findings:
    """Rows as the database has them, of this launch's campaigns alone."""

    events: dict[str, Counter[str]]
    skip_reasons: Counter[tuple[str, str]]
    tries: Counter[str]
    messages: list[dict[str, Any]]
    mails: list[Mail] | None
    """None where SES is not ours to look into."""
    positions: dict[str, dict[str, int]]
    """By campaign and person."""
    user_rewards: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    happened: dict[str, list[tuple[str, datetime]]]
    """What the metrics count: for each metric, campaigns and moments."""
    fraud_cases: list[dict[str, Any]]
    dead_letters: list[DeadLetter]
    outbox: list[dict[str, Any]]
    disabled_endpoints: list[UUID]
    suppressions: dict[str, str]
    """Reasons, by address."""
    unsubscribed: set[str]
    failed_invocations: dict[str, int]
    """By function, where it is not none."""
    unfinished: dict[str, int]


def leaderboard(connection: Connection, cast: Cast, campaign: str = MAIN_CAMPAIGN) -> list[Standing]:
    """Everybody of a campaign who has a position, the first one first."""
    key_of = {cast.user_id(key): key for key in cast.people}
    rows = connection.execute(
        "SELECT position, user_id, verified_referrals, score FROM campaign_jobs.user_positions"
        " WHERE campaign_id = %s ORDER BY position",
        (cast.campaign_id(campaign),),
    ).fetchall()
    return [
        Standing(position, key_of[user_id], cast.original_positions[key_of[user_id]], referrals, score)
        for position, user_id, referrals, score in rows
    ]


def parked_mails(connection: Connection, cast: Cast) -> set[str]:
    """Whose mail is parked now."""
    rows = connection.execute(
        "SELECT user_id FROM campaign_jobs.email_messages WHERE campaign_id = ANY(%s) AND status = 'parked'",
        ([cast.campaign_id(key) for key in cast.campaigns],),
    ).fetchall()
    key_of = {cast.user_id(key): key for key in cast.people}
    return {key_of[user_id] for (user_id,) in rows}


def unsubscribed_people(connection: Connection, cast: Cast) -> set[str]:
    """Who is unsubscribed now."""
    key_of = {cast.user_id(key): key for key in cast.people}
    rows = connection.execute(
        "SELECT user_id FROM campaign_jobs.email_unsubscribes WHERE user_id = ANY(%s)", (list(key_of),)
    ).fetchall()
    return {key_of[user_id] for (user_id,) in rows}


def collect(cast: Cast, system: LocalSystem, outcomes: Outcomes, *, topic: str, own_ses: bool) -> Findings:
    """Read everything once the system is quiet."""
    campaign_of = {cast.campaign_id(key): key for key in cast.campaigns}
    key_of = {cast.user_id(key): key for key in cast.people}
    with psycopg.connect(system.servers.database_url, autocommit=True) as connection:
        unsubscribed = unsubscribed_people(connection, cast)
        connection.row_factory = dict_row  # type: ignore[assignment]
        ids = list(campaign_of)

        def rows(statement: str) -> list[dict[str, Any]]:
            found: list[Any] = connection.execute(statement.encode(), (ids,)).fetchall()
            return [_named(row, campaign_of, key_of) for row in found]

        messages = rows(
            "SELECT m.event_id, m.type, m.campaign_id, m.user_id, m.status, m.reason, m.accepted_at,"
            " m.delivery_status, u.email"
            " FROM campaign_jobs.email_messages AS m JOIN campaign_jobs.waitlist_users AS u ON u.id = m.user_id"
            " WHERE m.campaign_id = ANY(%s) ORDER BY m.created_at, m.event_id"
        )
        positions: dict[str, dict[str, int]] = {key: {} for key in cast.campaigns}
        for row in rows(
            "SELECT campaign_id, user_id, position FROM campaign_jobs.user_positions WHERE campaign_id = ANY(%s)"
        ):
            positions[row["campaign"]][row["person"]] = row["position"]
        user_rewards = rows(
            "SELECT ur.id, ur.campaign_id, ur.user_id, r.name AS reward, r.delivery_method AS method, ur.status,"
            " ur.delivered_at, ur.attempts, ur.held_at IS NOT NULL AS held, ur.parked_at IS NOT NULL AS parked"
            " FROM campaign_jobs.user_rewards AS ur JOIN campaign_jobs.rewards AS r ON r.id = ur.reward_id"
            " WHERE ur.campaign_id = ANY(%s) ORDER BY r.name, ur.user_id"
        )
        metrics = rows(
            "SELECT * FROM campaign_jobs.campaign_metrics WHERE campaign_id = ANY(%s) ORDER BY campaign_id, bucket"
        )
        happened = {
            metric: [
                (row["campaign"], row["at"]) for row in rows(_HAPPENED.format(column=column, table=table))
            ]
            for metric, (table, column) in _SOURCES.items()
        }
        fraud_cases = rows(
            "SELECT campaign_id, user_id, status, holding, risk_score, evidence, decision_reason"
            " FROM campaign_jobs.fraud_cases WHERE campaign_id = ANY(%s) ORDER BY risk_score DESC, id"
        )
        disabled = rows(
            "SELECT id FROM campaign_jobs.webhook_endpoints WHERE campaign_id = ANY(%s) AND status = 'disabled'"
        )
        suppressed = rows(
            "SELECT s.address, s.reason FROM campaign_jobs.email_suppressions AS s"
            " JOIN campaign_jobs.waitlist_users AS u ON lower(u.email) = s.address WHERE u.campaign_id = ANY(%s)"
        )
        published = rows(
            "SELECT event_id, event, published_at FROM campaign_jobs.outbox"
            " WHERE (event ->> 'campaign_id')::uuid = ANY(%s) ORDER BY id"
        )
    return Findings(
        events=outcomes.by_type(),
        skip_reasons=outcomes.reasons(),
        tries=outcomes.tries,
        messages=messages,
        mails=read_mails(system.mail_directory) if own_ses else None,
        positions=positions,
        user_rewards=user_rewards,
        metrics=metrics,
        happened=happened,
        fraud_cases=fraud_cases,
        dead_letters=read_dead_letters(system, topic),
        outbox=published,
        disabled_endpoints=[row["id"] for row in disabled],
        suppressions={row["address"]: row["reason"] for row in suppressed},
        unsubscribed=unsubscribed,
        failed_invocations={
            name: function.failures for name, function in system.functions.items() if function.failures
        },
        unfinished=system.left_under_way(),
    )


_SOURCES: Final = {
    "new_signups": ("waitlist_users", "created_at"),
    "email_verifications": ("waitlist_users", "verified_at"),
    "referrals": ("referrals", "created_at"),
    "emails_sent": ("email_messages", "accepted_at"),
    "rewards_delivered": ("user_rewards", "delivered_at"),
}
_HAPPENED: Final = (
    "SELECT campaign_id, {column} AS at FROM campaign_jobs.{table}"
    " WHERE campaign_id = ANY(%s) AND {column} IS NOT NULL"
)


def _named(row: dict[str, Any], campaign_of: dict[UUID, str], key_of: dict[UUID, str]) -> dict[str, Any]:
    """Names of the script in the place of ids."""
    named = dict(row)
    if "campaign_id" in named:
        named["campaign"] = campaign_of[named.pop("campaign_id")]
    if "user_id" in named:
        named["person"] = key_of[named.pop("user_id")]
    return named


def read_dead_letters(system: LocalSystem, topic: str) -> list[DeadLetter]:
    """All dead letters of the topic. They stay in their queues, invisible there for as long as a reader may take."""
    sqs = system.servers.client("sqs")
    found: list[DeadLetter] = []
    for job_type in catalog.EVENT_JOB_TYPES:
        url = system.queue_urls[job_type.dead_letter_queue_setting]
        while messages := sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, WaitTimeSeconds=1
        ).get("Messages", []):
            for message in messages:
                body = json.loads(message["Body"])
                if body.get("topic") != topic:
                    continue
                details = body["dead_letter"]
                found.append(
                    DeadLetter(
                        job_type.name,
                        details["reason"],
                        details["attempts"],
                        body["topic"],
                        body["partition"],
                        body["offset"],
                        body.get("value"),
                    )
                )
    return sorted(found, key=lambda letter: (letter.queue, letter.reason, letter.partition, letter.offset))


def as_summary(findings: Findings, boards: dict[str, list[Standing]]) -> dict[str, Any]:
    """The totals as JSON has them."""
    emails: dict[str, Counter[str]] = {}
    for message in findings.messages:
        emails.setdefault(message["type"], Counter())[message["status"]] += 1
    reported = delivery_statuses(findings.messages)
    rewards: dict[str, Counter[str]] = {}
    for user_reward in findings.user_rewards:
        rewards.setdefault(user_reward["method"], Counter())[reward_state(user_reward)] += 1
    return {
        "events": {name: dict(counts) for name, counts in sorted(findings.events.items())},
        "emails": {name: dict(counts) for name, counts in sorted(emails.items())},
        "reported": {name: dict(counts) for name, counts in sorted(reported.items())},
        "suppressions": findings.suppressions,
        "unsubscribed": sorted(findings.unsubscribed),
        "leaderboard": {
            name: [asdict(standing) for standing in boards[moment][:LEADERBOARD_LENGTH]]
            for name, moment in LEADERBOARDS.items()
        },
        "rewards": {name: dict(counts) for name, counts in sorted(rewards.items())},
        "analytics": [
            {**row, "bucket": row["bucket"].astimezone(UTC).isoformat()} for row in findings.metrics
        ],
        "fraud_cases": [
            {
                "person": case["person"],
                "status": case["status"],
                "holding": case["holding"],
                "risk_score": case["risk_score"],
                "checks": sorted({entry["check"] for entry in case["evidence"]}),
            }
            for case in findings.fraud_cases
        ],
        "dead_letters": [
            {name: value for name, value in asdict(letter).items() if name != "value"}
            for letter in findings.dead_letters
        ],
    }


def delivery_statuses(messages: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """What SES reported of the mails that it took, by their types."""
    counts: dict[str, Counter[str]] = {}
    for message in messages:
        if message["status"] == "accepted":
            counts.setdefault(message["type"], Counter())[message["delivery_status"] or "nothing"] += 1
    return counts


def reward_state(user_reward: dict[str, Any]) -> str:
    """The status, with what an earned one waits for."""
    if user_reward["status"] == "earned" and user_reward["held"]:
        return "held"
    if user_reward["status"] == "earned" and user_reward["parked"]:
        return "parked"
    return str(user_reward["status"])
