"""Dead letters of real queues: read without a trace, sent back without loss, thrown away only on purpose."""

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from botocore.exceptions import ClientError

from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import (
    Received,
    body_of,
    dead_letter_of,
    dead_letter_of_unreadable,
    read_body,
)
from campaign_jobs_cli.dead_letters import command
from campaign_jobs_cli.dead_letters.letters import Letter
from campaign_jobs_cli.dead_letters.queue import Reading
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import Type
from tests.integration.email_campaign import MailCampaign

NOW = datetime.now(UTC)
CAMPAIGN, USER = uuid.uuid4(), uuid.uuid4()


def received(value: bytes, offset: int = 7) -> Received:
    return Received(Coordinates("job-events", 3, offset), value, NOW, NOW, attempts_spent=2)


def mail(event_id: str, type_: str = "welcome", campaign: UUID = CAMPAIGN) -> bytes:
    data = {"type": type_, "campaign_id": str(campaign), "user_id": str(USER)}
    return json.dumps({"id": event_id, "type": f"job.email.{type_}", "data": data}).encode()


def dead(
    value: bytes, *, job_type: str = "email", reason: str = "the user is gone", offset: int = 7, ago: int = 0
) -> str:
    at = NOW - timedelta(hours=ago)
    return json.dumps(dead_letter_of(received(value, offset), job_type=job_type, reason=reason, now=at))


def send(target: Target, queue: str, *bodies: str) -> None:
    for body in bodies:
        target.client("sqs").send_message(QueueUrl=target.queue_url(queue), MessageBody=body)


def counts(target: Target, queue: str) -> tuple[int, int]:
    """Messages to be received, and hidden ones."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = target.client("sqs").get_queue_attributes(QueueUrl=target.queue_url(queue), AttributeNames=names)
    return int(answer["Attributes"][names[0]]), int(answer["Attributes"][names[1]])


def bodies(target: Target, queue: str) -> list[str]:
    answer = target.client("sqs").receive_message(
        QueueUrl=target.queue_url(queue), MaxNumberOfMessages=10, VisibilityTimeout=600
    )
    return [message["Body"] for message in answer.get("Messages", [])]


def listed(type_: Type, *words: object) -> list[dict[str, Any]]:
    ran = type_("dead-letters", "list", "--output", "json", *words)
    assert ran.code == ExitCode.DONE, ran.err
    found: list[dict[str, Any]] = ran.json
    return found


def test_an_event_is_explained_by_its_dead_letter(type_: Type, target: Target) -> None:
    send(target, "email-dead-letters", dead(mail("one")), dead(mail("two"), offset=8))
    assert type_("explain", "one", "--output", "json").json["known"] is False
    explained = type_("explain", "one", "--dead-letters", "--output", "json")
    assert explained.code == ExitCode.DONE
    found = explained.json
    assert (found["known"], found["type"]) == (True, "job.email.welcome")
    assert found["outcome"] == "given up: the user is gone"
    assert [letter["id"] for letter in found["dead_letters"]] == ["3:7"]
    assert not any("given up" in line for line in found["look_also"])
    assert counts(target, "email-dead-letters") == (2, 0)
    page = type_("explain", "one", "--dead-letters").out
    assert "Dead letters" in page and "3:7" in page
    other = type_("explain", "three", "--dead-letters", "--output", "json")
    assert (other.code, other.json["dead_letters"]) == (ExitCode.FAILED, [])


def test_list_tells_what_where_and_why(type_: Type, target: Target) -> None:
    send(target, "email-dead-letters", dead(mail("one")))
    (row,) = listed(type_)
    assert row == {
        "id": "3:7",
        "at": NOW.isoformat(),
        "job_type": "email",
        "event_type": "job.email.welcome",
        "reason": "the user is gone",
        "attempts": 2,
        "event_id": "one",
        "campaign_id": str(CAMPAIGN),
        "user_id": str(USER),
        "topic": "job-events",
        "partition": 3,
        "offset": 7,
        "copies": 1,
    }
    table = type_("dead-letters", "list")
    assert "the user is gone" in table.out and "3:7" in table.out


def test_reading_leaves_all_as_it_was(type_: Type, target: Target) -> None:
    send(
        target, "email-dead-letters", *(dead(mail(f"event-{number}"), offset=number) for number in range(23))
    )
    for _ in range(2):
        assert len(listed(type_)) == 23
        assert counts(target, "email-dead-letters") == (23, 0)


def test_a_copy_is_shown_once(type_: Type, target: Target) -> None:
    send(target, "email-dead-letters", dead(mail("one")), dead(mail("one")), dead(mail("two"), offset=8))
    assert {row["id"]: row["copies"] for row in listed(type_)} == {"3:7": 2, "3:8": 1}


def test_filters(type_: Type, target: Target, connection: psycopg.Connection[Any]) -> None:
    campaign = MailCampaign(connection)
    user_reward = campaign.earn(campaign.add_reward("manual"))
    event = {"id": "r", "type": "job.reward.deliver", "data": {"user_reward_id": str(user_reward)}}
    send(
        target,
        "email-dead-letters",
        dead(mail("old"), offset=1, ago=5),
        dead(mail("new", campaign=campaign.id), offset=2, reason="SES said (Rejected)"),
    )
    send(
        target,
        "reward-dead-letters",
        dead(json.dumps(event).encode(), job_type="reward", offset=3, reason="HTTP 500"),
    )

    def found(*words: object) -> list[str]:
        return [row["id"] for row in listed(type_, *words)]

    assert found("--job-type", "reward") == ["3:3"]
    assert set(found("--since", "1h")) == {"3:2", "3:3"}
    assert found("--until", "1h") == ["3:1"]
    assert found("--reason", "ses said (") == ["3:2"]
    assert found("--matching", r"HTTP \d+") == ["3:3"]
    assert set(found("--campaign", campaign.id)) == {"3:2", "3:3"}
    assert type_("dead-letters", "list", "--matching", "(").code == ExitCode.WRONG_USAGE
    assert type_("dead-letters", "list", "--job-type", "mail").code == ExitCode.WRONG_USAGE


@pytest.mark.parametrize(
    ("queue", "body", "reason", "destination"),
    [
        ("email", dead(mail("1", "milestone")), "the user is gone", "email-bulk-retry"),
        ("email", dead(b"\xff\x00", reason="who knows"), "who knows", "email-retry"),
        ("unroutable", dead(b"[]", job_type="unroutable"), "the user is gone", "unroutable-retry"),
        ("unroutable", dead(b"x" * 300_000, job_type="unroutable"), "the user is gone", None),
        (
            "reward",
            json.dumps(dead_letter_of_unreadable("what?", job_type="reward", reason="not ours", now=NOW)),
            "not ours",
            None,
        ),
        (
            "position",
            json.dumps(body_of(received(b"{}"), reason="later")),
            "received too often; the last reason: later",
            "position-retry",
        ),
        ("reward", "no JSON at all", "received too often", None),
        ("reward", '["a list"]', "received too often", None),
        ("reward", '{"value_base64": 3, "dead_letter": "no", "topic": []}', "received too often", "reward-retry"),
        ("feedback", json.dumps({"detail-type": "Email Bounced"}), "received too often", "feedback"),
    ],
)  # fmt: skip
def test_whatever_lies_in_a_queue_is_shown(
    type_: Type, target: Target, queue: str, body: str, reason: str, destination: str | None
) -> None:
    send(target, f"{queue}-dead-letters", body)
    (row,) = listed(type_)
    assert row["job_type"] == queue
    assert reason in row["reason"]
    (shown,) = type_("dead-letters", "show", row["id"], "--output", "json").json
    assert shown["goes_back_to"] == destination
    assert type_("dead-letters", "show", row["id"]).code == ExitCode.DONE


def test_show_finds_by_event_and_says_what_is_not_there(type_: Type, target: Target) -> None:
    send(target, "email-dead-letters", dead(mail("one")), dead(mail("two"), offset=8))
    (shown,) = type_("dead-letters", "show", "two", "--output", "json").json
    assert (shown["id"], shown["event"]["data"]["user_id"]) == ("3:8", str(USER))
    missing = type_("dead-letters", "show", "three")
    assert missing.code == ExitCode.FAILED and "three" in missing.err


def test_redrive_sends_back_what_was_meant_as_it_is(type_: Type, target: Target) -> None:
    bulk = dead(mail("bulk", "position_update"), offset=2)
    send(target, "email-dead-letters", dead(mail("one")), dead(mail("one")), bulk)
    send(target, "email-dead-letters", dead(mail("stays"), offset=3, reason="another reason"))
    ran = type_("dead-letters", "redrive", "--reason", "gone", "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert ran.json == {"redriven": 2, "by": {"email-bulk-retry": 1, "email-retry": 1}, "planned": 2}
    (body,) = bodies(target, "email-retry")
    again = read_body(body, now=NOW)
    assert (again.value, again.attempts_spent) == (mail("one"), 0)
    assert bodies(target, "email-bulk-retry") == [bulk]
    assert [row["event_id"] for row in listed(type_)] == ["stays"]


def test_an_id_that_leads_to_nothing_is_told(type_: Type, target: Target) -> None:
    send(target, "email-dead-letters", *(dead(mail(f"event-{number}"), offset=number) for number in range(3)))
    for words in (
        ["show", "3:0"],
        ["redrive", "event-1", "--yes"],
        ["discard", "3:2", "--no-save", "--yes"],
    ):
        ran = type_("dead-letters", *words, "9:9", "mistyped")
        assert ran.code == ExitCode.DONE
        assert "There is no such dead letter: 9:9, mistyped" in ran.err
    assert [row["event_id"] for row in listed(type_)] == ["event-0"]


def test_feedbacks_letters_go_back_to_its_queue(type_: Type, target: Target) -> None:
    event = json.dumps({"detail-type": "Email Bounced", "detail": {"mail": {}}})
    send(target, "feedback-dead-letters", event)
    ran = type_("dead-letters", "redrive", "--job-type", "feedback", "--yes")
    assert ran.code == ExitCode.DONE and "1 redriven" in ran.err
    assert bodies(target, "feedback") == [event]
    assert listed(type_) == []


def test_what_would_be_in_vain_stays(type_: Type, target: Target) -> None:
    send(target, "unroutable-dead-letters", dead(b"x" * 300_000, job_type="unroutable"))
    ran = type_("dead-letters", "redrive", "--all", "--yes")
    assert ran.code == ExitCode.DONE and "can only be discarded" in ran.err and "0 redriven" in ran.err
    assert len(listed(type_)) == 1


@pytest.mark.parametrize("words", [["redrive"], ["discard", "--no-save"]])
def test_nothing_is_done_that_nobody_wanted(type_: Type, target: Target, words: list[str]) -> None:
    send(target, "email-dead-letters", dead(mail("one")))
    assert type_("dead-letters", *words, "--yes").code == ExitCode.WRONG_USAGE
    declined = type_("dead-letters", *words, "--all")
    assert declined.code == ExitCode.DECLINED and "the user is gone" in declined.out
    assert counts(target, "email-dead-letters") == (1, 0)
    assert counts(target, "email-retry") == (0, 0)


def test_a_redrive_that_sqs_refuses_loses_nothing(
    type_: Type, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(
        target, "email-dead-letters", *(dead(mail(f"event-{number}"), offset=number) for number in range(12))
    )
    sqs = target.client("sqs")
    delete = sqs.delete_message_batch
    calls: list[object] = []

    def fails_once(**arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, "DeleteMessageBatch")
        return delete(**arguments)

    monkeypatch.setattr(sqs, "delete_message_batch", fails_once)
    ran = type_("dead-letters", "redrive", "--all", "--yes")
    assert ran.code == ExitCode.FAILED and "ServiceUnavailable" in ran.err
    # What was sent and not deleted is there twice; the rest is back for others to see.
    left = counts(target, "email-dead-letters")
    assert left[1] == 0
    assert left[0] + counts(target, "email-retry")[0] > 12

    assert type_("dead-letters", "redrive", "--all", "--yes").code == ExitCode.DONE
    sent: list[str] = []
    while more := bodies(target, "email-retry"):
        sent += more
    assert {read_body(body, now=NOW).coordinates.offset for body in sent} == set(range(12))
    assert counts(target, "email-dead-letters") == (0, 0)


def test_a_letter_that_comes_back_meanwhile_is_not_taken_for_the_old_one(
    type_: Type, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS hands over ten at a time, so that it is met with the last two."""
    send(
        target, "email-dead-letters", *(dead(mail(f"event-{number}"), offset=number) for number in range(12))
    )
    real_send, calls = command.send, []

    def given_up_again(target: Target, queue: str, sent: Sequence[str]) -> None:
        real_send(target, queue, sent)
        calls.append(queue)
        if len(calls) == 1:
            send(
                target, "email-dead-letters", dead(mail("event-0"), offset=0, reason="the user is still gone")
            )

    monkeypatch.setattr(command, "send", given_up_again)
    assert type_("dead-letters", "redrive", "--all", "--yes").code == ExitCode.DONE
    assert len(calls) == 2
    assert [row["reason"] for row in listed(type_)] == ["the user is still gone"]


def test_an_interrupted_look_hides_nothing(
    type_: Type, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(
        target, "email-dead-letters", *(dead(mail(f"event-{number}"), offset=number) for number in range(12))
    )

    batches = Reading.batches

    def interrupted(reading: Reading) -> Iterator[list[Letter]]:
        for letters in batches(reading):
            assert counts(target, "email-dead-letters")[1] > 0
            yield letters
            raise KeyboardInterrupt

    monkeypatch.setattr(Reading, "batches", interrupted)
    for words in (["list"], ["discard", "--all", "--no-save", "--yes"]):
        assert type_("dead-letters", *words).code == ExitCode.INTERRUPTED
        assert counts(target, "email-dead-letters") == (12, 0)


def test_discard_keeps_them_in_a_file(type_: Type, target: Target, tmp_path: Path) -> None:
    body = dead(mail("one"))
    send(target, "email-dead-letters", body, body, dead(mail("stays"), offset=9))
    file = tmp_path / "letters.jsonl"
    assert type_("dead-letters", "discard", "3:7", "--yes").code == ExitCode.WRONG_USAGE
    ran = type_("dead-letters", "discard", "3:7", "--save", file, "--yes", "--output", "json")
    assert ran.code == ExitCode.DONE, ran.err
    assert ran.json == {"discarded": 1, "by": {"email": 1}, "planned": 1}
    assert [json.loads(line)["body"] for line in file.read_text().splitlines()] == [body, body]
    assert [row["event_id"] for row in listed(type_)] == ["stays"]

    refused = type_("dead-letters", "discard", "--all", "--save", file, "--yes")
    assert refused.code == ExitCode.WRONG_USAGE and "there already" in refused.err
    assert type_("dead-letters", "discard", "--all", "--no-save", "--yes").code == ExitCode.DONE
    assert listed(type_) == []
