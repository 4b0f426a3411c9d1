"""What the database knows of one event, and where to look for the rest."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from campaign_jobs_cli.targets import Connection

# All that is kept under an event's id, in one statement; each part is NULL or an empty list where there is nothing.
_READ: Final = """
SELECT
    (SELECT to_jsonb(mail) || jsonb_build_object('email', users.email)
     FROM campaign_jobs.email_messages AS mail
     JOIN campaign_jobs.waitlist_users AS users ON users.id = mail.user_id
     WHERE mail.event_id = %(id)s) AS mail,
    (SELECT coalesce(jsonb_agg(to_jsonb(reported) - 'tag' ORDER BY reported.occurred_at, reported.recorded_at), '[]')
     FROM campaign_jobs.email_events AS reported
     WHERE reported.tag = campaign_jobs.message_tag(%(id)s)) AS ses_events,
    (SELECT to_jsonb(waiting) - 'id' FROM campaign_jobs.outbox AS waiting
     WHERE waiting.event_id = %(id)s) AS outbox,
    (SELECT to_jsonb(request) FROM campaign_jobs.position_requests AS request
     WHERE request.event_id = %(id)s) AS position_request,
    (SELECT coalesce(jsonb_agg(to_jsonb(attempt) - 'id' ORDER BY attempt.id), '[]')
     FROM campaign_jobs.webhook_attempts AS attempt WHERE attempt.event_id = %(id)s) AS webhook_attempts,
    (SELECT jsonb_build_object('user_reward_id', parked.id, 'user_id', parked.user_id, 'parked_at', parked.parked_at)
     FROM campaign_jobs.user_rewards AS parked
     WHERE parked.parked_event_id = %(id)s AND parked.parked_at IS NOT NULL LIMIT 1) AS parked_reward,
    (SELECT jsonb_build_object('user_reward_id', asked.id, 'user_id', asked.user_id, 'status', asked.status,
        'attempts', asked.attempts, 'last_error', asked.last_error, 'held_at', asked.held_at)
     FROM campaign_jobs.user_rewards AS asked
     WHERE asked.id = coalesce(
        -- A service may have written anything there.
        (SELECT CASE WHEN event #>> '{data,user_reward_id}' ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN (event #>> '{data,user_reward_id}')::uuid END
         FROM campaign_jobs.outbox WHERE event_id = %(id)s),
        (SELECT user_reward_id FROM campaign_jobs.webhook_attempts WHERE event_id = %(id)s LIMIT 1))) AS user_reward,
    (SELECT jsonb_build_object('campaign_id', runs.campaign_id, 'ranked_at', runs.ranked_at, 'runs', runs.runs)
     FROM campaign_jobs.campaigns AS campaign
     JOIN campaign_jobs.position_runs AS runs ON runs.campaign_id = campaign.id
     WHERE campaign.points_request_id = %(id)s LIMIT 1) AS set_the_points
"""


# Without the token of a claim, and without what a producer gave for the template.
_MAIL: Final = (
    "type", "email", "status", "reason", "delivery_status", "delivery_status_at", "accepted_at", "ses_message_id",
    "claimed_until", "position", "user_id", "campaign_id", "user_reward_id", "once_key", "tag", "created_at",
    "updated_at",
)  # fmt: skip


def read(
    connection: Connection, event_id: str, command: str = "campaign-jobs", *, asks_queues: bool = False
) -> dict[str, Any]:
    """What is known under the id; `known` is False where that is nothing. `command` begins what to type next.

    Whoever asks the dead-letter queues as well adds what they hold (`with_dead_letters`).
    """
    row = connection.execute(_READ, {"id": event_id}).fetchone()
    assert row is not None
    row = {name: _read_back(value) for name, value in row.items()}
    if row["mail"] is not None:
        row["mail"] = {name: row["mail"][name] for name in _MAIL}
    found = {name: value for name, value in row.items() if value}
    type_ = _type(found)
    return {
        "event_id": event_id,
        "known": bool(found),
        "type": type_,
        "outcome": _outcome(found),
        **row,
        "dead_letters": None,
        "look_also": _look_also(event_id, found, type_, command, asks_queues=asks_queues),
    }


def with_dead_letters(event: dict[str, Any], letters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same, after the dead-letter queues were asked for it: `letters` are the rows of those found."""
    if not letters:
        return {**event, "dead_letters": []}
    return {
        **event,
        "known": True,
        "type": event["type"] or letters[0]["event_type"],
        "outcome": f"given up: {letters[0]['reason']}",
        "dead_letters": list(letters),
    }


def _read_back(value: Any) -> Any:
    """Moments that went through JSON, as moments."""
    if isinstance(value, list):
        return [_read_back(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: datetime.fromisoformat(each) if name.endswith(("_at", "_until")) and each else each
        for name, each in value.items()
    }


def _type(found: Mapping[str, Any]) -> str | None:
    if "outbox" in found:
        return str(found["outbox"]["event"].get("type"))
    if "mail" in found:
        return f"job.email.{found['mail']['type']}"
    if "position_request" in found or "set_the_points" in found:
        return "job.position.recalculate"
    if "webhook_attempts" in found or "parked_reward" in found:
        return "job.reward.deliver"
    return None


def _outcome(found: Mapping[str, Any]) -> str:
    """One sentence on what became of it."""
    outbox = found.get("outbox")
    if outbox is not None and outbox["refused"] is not None:
        return f"refused: it can never be published, because {outbox['refused']}"
    if "mail" in found:
        return _of_mail(found["mail"])
    if "parked_reward" in found:
        return "parked: its webhook's endpoint is disabled; relay emits it again once the endpoint is enabled"
    if outbox is not None and outbox["published_at"] is None:
        return "it waits in the outbox; relay publishes it within seconds"
    if "position_request" in found:
        return "it waits for a run of the position job"
    if "set_the_points" in found:
        return "done: it set the points of its campaign"
    if "webhook_attempts" in found:
        return _of_webhook(found["webhook_attempts"][-1], found.get("user_reward"))
    if "user_reward" in found:
        return f"it was published; the user reward is {found['user_reward']['status']} now"
    if outbox is not None:
        return "it was published; the job has left nothing under its id yet"
    return "the database knows nothing of it"


def _of_mail(mail: Mapping[str, Any]) -> str:
    reason, delivery = mail["reason"], mail["delivery_status"]
    match mail["status"]:
        case "accepted":
            reported = f"SES reports: {delivery}" if delivery else "SES has reported nothing of it yet"
            return f"sent: SES has taken the mail; {reported}"
        case "skipped":
            return f"skipped: {reason}"
        case "parked":
            return f"parked: {reason}; relay emits it again once the mail may go"
        case "failed":
            return f"failed: {reason}; it comes again, or is a dead letter"
        case "released":
            return f"not sent yet: {reason or 'it was handed on'}; it comes again"
    return f"being sent; whoever has it must have ended by {mail['claimed_until']}"


def _of_webhook(attempt: Mapping[str, Any], reward: Mapping[str, Any] | None) -> str:
    answer = f"HTTP {attempt['status_code']}" if attempt["status_code"] else attempt["error"]
    delivered = attempt["status_code"] is not None and 200 <= attempt["status_code"] < 300
    if delivered:
        return f"delivered: the endpoint answered {answer}"
    now = f"; the user reward is {reward['status']} now" if reward else ""
    return f"not delivered: the last attempt ended with {answer}{now}"


def _look_also(
    event_id: str, found: Mapping[str, Any], type_: str | None, command: str, *, asks_queues: bool
) -> list[str]:
    """Commands that know what the database does not: the topic, and the queues."""
    mail = found.get("mail")
    is_over = mail is not None and mail["status"] in ("accepted", "skipped", "parked")
    commands = []
    if not is_over and not asks_queues:
        given_up = f"{command} explain {shlex.quote(event_id)} --dead-letters"
        commands.append(f"{given_up}: whether it was given up, and why")
    if not is_over:
        commands.append(f"{command} lag: whether its job type is behind, and the oldest retry")
    if "outbox" not in found:
        what = f" --type {type_}" if type_ else ""
        commands.append(f"{command} events tail --from 7d{what}: the event as it was published, if it was")
    user = mail or found.get("parked_reward") or found.get("user_reward")
    if user is not None:
        commands.append(f"{command} explain {user['user_id']}: all about its user")
    if not found:
        commands.append(f"the logs of the functions, by event_id = {event_id}")
    return commands
