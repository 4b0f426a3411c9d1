"""The email job on a real database: what is sent, what is written down, and what a crash costs."""

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.catalog import MAX_VALUE_BYTES
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.email.ses import Failed, Mail, Refused, SendResult, Throttled, Unknown, Unreached
from campaign_jobs.errors import DatabaseUnavailable, RateExhausted, RateUnknown, SendingStopped
from campaign_jobs.events import EVENT_ADAPTER, EmailEvent, as_value
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from tests.integration.email_campaign import (
    DEFAULT_SENDER,
    UNSUBSCRIBE_LINKS,
    MailCampaign,
    RecordingSender,
    claim_elsewhere,
    delivery_of,
)
from tests.integration.reward_campaign import deadline

POOL_SIZE = 10
OTHERS_CLAIM = "the mail is claimed by somebody else"
CHANGED = "what the mail was decided by changed meanwhile"


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


def job_of(database: Database, sender: RecordingSender, **changes: Any) -> EmailJob:
    settings: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "default_sender": DEFAULT_SENDER,
        "unsubscribe_links": UNSUBSCRIBE_LINKS,
    }
    return EmailJob(database, sender, **{**settings, **changes})


@pytest.fixture
def job(database: Database, sender: RecordingSender) -> EmailJob:
    return job_of(database, sender)


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def second_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def process(job: EmailJob, *deliveries: Delivery[EmailEvent], seconds: float = 100) -> list[Outcome]:
    return list(job.process(deliveries, deadline(seconds)))


def is_later(outcome: Outcome, reason: str, longest: float) -> bool:
    return (
        isinstance(outcome, Later)
        and outcome.reason == reason
        and timedelta() < outcome.after <= timedelta(seconds=longest)
    )


class Crash(BaseException):
    """The process is gone."""


def crash_while_recording(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies after the sends of pool-full `number`, before they are recorded."""
    record, count = store.record, iter(range(1, 1000))

    def dying(*arguments: Any, **named: Any) -> Any:
        if next(count) >= number:
            raise Crash
        return record(*arguments, **named)

    monkeypatch.setattr(store, "record", dying)


# What is sent.


def test_each_type_is_sent_with_what_it_needs_and_written_down(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user(first_name="Jörg", original_position=812)
    campaign.rank(user, 795)
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    deliveries = [
        campaign.asks("verification", user),
        campaign.asks("welcome", user, template_data={"plan": "pro"}),
        campaign.asks("position_update", user),
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward)),
        campaign.asks("milestone", user, milestone=10),
    ]
    assert process(job, *deliveries) == [Done()] * 5
    mails = {mail.tags["type"]: mail for mail in sender.accepted}
    assert len(mails) == len(sender.accepted) == 5
    for mail in mails.values():
        assert mail.recipient == campaign.address(user)
        assert (mail.sender_name, mail.sender, mail.foreign_sender) == ("Launch", DEFAULT_SENDER, False)
        assert mail.tags["campaign"] == str(campaign.id)
        assert "Jörg" in mail.content.html
        assert "Jörg" in mail.content.text
    assert f"https://launch.example.com/verify?token=token-{user}" in mails["verification"].content.text
    assert "795" in mails["position_update"].content.text
    assert "17 places" in mails["position_update"].content.text
    assert "LAUNCH-1" in mails["reward_earned"].content.text
    assert "10" in mails["milestone"].content.text
    for delivery in deliveries:
        row = campaign.mail(
            delivery, "status, reason, claim_token, ses_message_id IS NOT NULL, accepted_at IS NOT NULL"
        )
        assert row == ("accepted", None, None, True, True)
    assert campaign.mail(deliveries[2], "position") == (795,)
    assert campaign.row(user_reward) == ("delivered",)
    # Delivered again, nothing happens.
    assert process(job, *deliveries) == [Done()] * 5
    assert len(sender.accepted) == 5


def test_a_campaign_sends_under_its_own_name(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(from_name="Team Ü", from_email="team@other.example.org", reply_to="help@other.example.org")
    assert process(job, campaign.asks("verification", campaign.add_user())) == [Done()]
    (mail,) = sender.accepted
    assert (mail.sender_name, mail.sender, mail.reply_to) == (
        "Team Ü",
        "team@other.example.org",
        "help@other.example.org",
    )
    assert mail.foreign_sender


def test_a_name_cannot_add_a_header(job: EmailJob, campaign: MailCampaign, sender: RecordingSender) -> None:
    campaign.set(name="Launch\r\nBcc: everybody@example.org\x85\u2028x")
    assert process(job, campaign.asks("verification", campaign.add_user())) == [Done()]
    assert sender.accepted[0].sender_name == "Launch Bcc: everybody@example.org x"
    assert sender.accepted[0].content.subject.isprintable()


def test_at_most_a_pool_full_is_on_its_way(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    together = threading.Barrier(POOL_SIZE)

    def meet(mail: Mail) -> None:
        together.wait(20)

    sender.answer = meet
    deliveries = [campaign.asks("verification", campaign.add_user()) for _ in range(2 * POOL_SIZE)]
    assert process(job, *deliveries) == [Done()] * 20
    assert sender.most_at_once == POOL_SIZE


# What is not sent.


def block(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, status="blocked")


def remove(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, status="removed")


def suppress(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.change_user(user, email="Mixed.Case@Example.org")
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason) VALUES ('mixed.case@example.org', 'bounce')"
    )


def unsubscribe(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.connection.execute("INSERT INTO campaign_jobs.email_unsubscribes (user_id) VALUES (%s)", (user,))


def verify(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = 'verified', verified_at = now() WHERE id = %s",
        (user,),
    )


def end(campaign: MailCampaign, user: uuid.UUID) -> None:
    campaign.set(status="ended")


@pytest.mark.parametrize(
    ("change", "type_", "reason"),
    [
        (verify, "verification", "the user is verified already"),
        (remove, "verification", "the user is removed"),
        (block, "welcome", "the user is blocked"),
        (suppress, "verification", "the address is suppressed: bounce"),
        (unsubscribe, "welcome", "the user has unsubscribed"),
        (end, "welcome", "the campaign has ended"),
        (lambda *_: None, "position_update", "the user has no position"),
    ],
)
def test_a_skip_is_an_outcome_with_its_reason_and_stays(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    change: Callable[[MailCampaign, uuid.UUID], None],
    type_: str,
    reason: str,
) -> None:
    user = campaign.add_user()
    change(campaign, user)
    delivery = campaign.asks(type_, user)
    assert process(job, delivery) == [Skipped(reason)]
    assert campaign.mail(delivery) == ("skipped", reason)
    campaign.set(status="active")
    campaign.change_user(user, status="pending")
    campaign.connection.execute("DELETE FROM campaign_jobs.email_unsubscribes")
    campaign.rank(user, 1)
    campaign.change_user(user, original_position=5000)
    # Days later the same event is still that skip, while a new one goes: a skip uses up no once-key.
    assert process(job, delivery) == [Skipped("skipped before")]
    if change not in (suppress, verify):
        assert process(job, campaign.asks(type_, user)) == [Done()]
    else:
        assert not sender.accepted


def test_what_an_ended_campaign_still_sends(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    campaign.set(status="ended")
    assert process(
        job,
        campaign.asks("verification", user),
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward)),
        campaign.asks("milestone", user, milestone=1),
    ) == [Done(), Done(), Skipped("the campaign has ended")]
    assert {mail.tags["type"] for mail in sender.accepted} == {"verification", "reward_earned"}


def test_a_position_is_told_when_it_is_better_by_the_minimum_and_not_too_often(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(position_email_min_delta=3, position_email_cooldown=timedelta(hours=12))
    user = campaign.add_user(original_position=100)

    def told(position: int) -> Outcome:
        campaign.rank(user, position)
        (outcome,) = process(job, campaign.asks("position_update", user))
        return outcome

    too_little = Skipped("the position is not better by the campaign's minimum than the one last told")
    assert told(98) == too_little
    assert told(97) == Done()
    assert told(50) == Skipped("the last position update is too recent")
    campaign.connection.execute(
        "UPDATE campaign_jobs.email_messages SET accepted_at = accepted_at - interval '12 hours'"
        " WHERE status = 'accepted'"
    )
    assert told(95) == too_little
    assert told(94) == Done()
    assert len(sender.accepted) == 2


def test_only_one_of_two_position_updates_in_a_batch_goes(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user(original_position=100)
    campaign.rank(user, 5)
    first, second = campaign.asks("position_update", user), campaign.asks("position_update", user)
    outcomes = process(job, first, second)
    assert outcomes[0] == Done()
    assert is_later(outcomes[1], OTHERS_CLAIM, 10)
    assert len(sender.accepted) == 1
    assert isinstance(process(job, second)[0], Skipped)


@pytest.mark.parametrize("moves_on", [False, True])
def test_a_position_update_that_was_decided_before_another_went_is_given_back(
    database: Database,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    moves_on: bool,
) -> None:
    campaign.set(position_email_cooldown=timedelta() if moves_on else timedelta(hours=24))
    user = campaign.add_user(original_position=100)
    campaign.rank(user, 5)
    late, quick = campaign.asks("position_update", user), campaign.asks("position_update", user)
    claim = store.claim

    def overtaken(*arguments: Any, **named: Any) -> set[str]:
        monkeypatch.setattr(store, "claim", claim)
        with_its_own = Database(database._conninfo())
        assert process(job_of(with_its_own, sender), quick) == [Done()]
        with_its_own.close()
        if moves_on:
            # It may go again, but not with the position that it was written with.
            campaign.rank(user, 1)
        return claim(*arguments, **named)

    monkeypatch.setattr(store, "claim", overtaken)
    (outcome,) = process(job_of(database, sender), late)
    assert is_later(outcome, CHANGED, 10)
    assert len(sender.accepted) == 1
    assert campaign.mail(late) == ("released", CHANGED)


# Once.


@pytest.mark.parametrize(
    ("type_", "data", "again"),
    [
        ("welcome", {}, Skipped("it has been sent for another event")),
        ("milestone", {"milestone": 10}, Skipped("it has been sent for another event")),
        ("verification", {}, Done()),
    ],
)
def test_what_goes_only_once_goes_once_and_a_verification_as_often_as_asked_for(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    type_: str,
    data: dict[str, Any],
    again: Outcome,
) -> None:
    user = campaign.add_user()
    assert process(job, campaign.asks(type_, user, **data)) == [Done()]
    assert process(job, campaign.asks(type_, user, **data)) == [again]
    assert len(sender.accepted) == (2 if again == Done() else 1)
    if data:
        assert process(job, campaign.asks(type_, user, milestone=11)) == [Done()]


@pytest.mark.parametrize("same_event", [True, False])
def test_two_concurrent_deliveries_send_once(
    database: Database,
    second_database: Database,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    same_event: bool,
) -> None:
    user = campaign.add_user()
    first = campaign.asks("welcome", user)
    second = first if same_event else campaign.asks("welcome", user)
    both_decided = threading.Barrier(2)
    claim = store.claim

    def at_the_same_time(*arguments: Any, **named: Any) -> set[str]:
        both_decided.wait(20)
        return claim(*arguments, **named)

    monkeypatch.setattr(store, "claim", at_the_same_time)
    outcomes: list[Outcome] = []

    def deliver(database: Database, delivery: Delivery[EmailEvent]) -> None:
        outcomes.extend(process(job_of(database, sender), delivery))

    threads = [
        threading.Thread(target=deliver, args=arguments)
        for arguments in ((database, first), (second_database, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sender.accepted) == 1
    (other,) = [outcome for outcome in outcomes if outcome != Done()]
    assert is_later(other, OTHERS_CLAIM, 10)


def test_two_welcome_events_of_one_user_in_a_batch_send_once_the_more_urgent(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    # The batch comes sorted by priority, whatever the ids.
    urgent, other = campaign.asks("welcome", user, "b", priority=5), campaign.asks("welcome", user, "a")
    outcomes = process(job, urgent, other)
    assert outcomes[0] == Done()
    assert is_later(outcomes[1], OTHERS_CLAIM, 10)
    assert process(job, other) == [Skipped("it has been sent for another event")]
    assert len(sender.accepted) == 1


def test_rivals_that_were_both_parked_do_not_disturb_their_batch(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = campaign.add_user()
    rivals = [campaign.asks("welcome", user), campaign.asks("welcome", user)]
    neighbors = [campaign.asks("verification", campaign.add_user()) for _ in range(6)]
    campaign.set(status="paused")
    process(job, *rivals)
    campaign.set(status="active")
    claims: list[int] = []
    claim = store.claim

    def counted(connection: Connection, loaded: Any, **named: Any) -> set[str]:
        claims.append(len(loaded))
        return claim(connection, loaded, **named)

    monkeypatch.setattr(store, "claim", counted)
    outcomes = process(job, *neighbors[:3], *rivals, *neighbors[3:])
    assert outcomes.count(Done()) == 7
    assert sender.sent["welcome", campaign.address(user)] == 1
    assert claims == [7]


def test_losing_the_race_for_a_once_key_spends_no_attempt(
    database_url: str, job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    mine, rival = campaign.asks("welcome", user), campaign.asks("welcome", user)
    campaign.set(status="paused")
    process(job, mine)
    campaign.set(status="active")
    outcomes: list[Outcome] = []
    with psycopg.connect(database_url) as somebody:
        # The rival has been claimed, but that is not committed yet when we look.
        claim_elsewhere(somebody, rival, f"welcome:{user}")
        thread = threading.Thread(target=lambda: outcomes.extend(process(job, mine)))
        thread.start()
        while not campaign._one("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert thread.is_alive()
        somebody.commit()
        thread.join()
    (outcome,) = outcomes
    assert is_later(outcome, OTHERS_CLAIM, 10)
    assert not sender.accepted


# Claims and crashes.


def test_a_live_claim_is_waited_for_and_an_expired_one_taken_over(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    mine, rival = campaign.asks("welcome", user), campaign.asks("welcome", user)
    claim_elsewhere(campaign.connection, rival, f"welcome:{user}")
    outcomes = process(job, rival, mine)
    assert all(is_later(outcome, OTHERS_CLAIM, 100) for outcome in outcomes)
    assert not sender.accepted
    campaign.let_claims_expire()
    assert process(job, mine) == [Done()]
    assert campaign.mail(rival) == ("released", "the claim expired")
    assert process(job, rival) == [Skipped("it has been sent for another event")]


def test_a_claim_lasts_as_long_as_the_invocation_and_a_margin(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    left: list[float] = []

    def look(mail: Mail) -> None:
        row = campaign.mail(delivery, "extract(epoch FROM claimed_until - clock_timestamp())::float, status")
        assert row is not None
        assert row[1] == "claimed"
        left.append(row[0])

    sender.answer = look
    assert process(job, delivery, seconds=60) == [Done()]
    assert 80 < left[0] <= 90


def test_a_crash_before_recording_repeats_at_most_a_pool_full(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    with monkeypatch.context() as dying:
        crash_while_recording(dying, 2)
        with pytest.raises(Crash):
            process(job, *deliveries)
    assert len(sender.accepted) == 20
    assert campaign.statuses() == {"accepted": 10, "claimed": 15}
    # Delivered again at once, what is claimed waits for its claim's end.
    outcomes = process(job, *deliveries)
    assert outcomes.count(Done()) == 10
    assert sum(is_later(outcome, OTHERS_CLAIM, 130) for outcome in outcomes) == 15
    assert len(sender.accepted) == 20
    campaign.let_claims_expire()
    assert process(job, *deliveries) == [Done()] * 25
    assert len(sender.accepted) == 25 + POOL_SIZE
    assert set(sender.sent.values()) == {1, 2}


@pytest.mark.parametrize("locked", [1, 4])
def test_what_cannot_be_recorded_counts_as_on_its_way(
    database_url: str, campaign: MailCampaign, sender: RecordingSender, locked: int
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    job = job_of(impatient, sender, pool_size=4)
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(10)]
    unrecorded: list[int] = []
    with psycopg.connect(database_url) as holder:
        holding = threading.Lock()

        def look_and_lock(mail: Mail) -> None:
            with holding:
                if not unrecorded:
                    ids = [delivery.event.id for delivery in deliveries[:locked]]
                    holder.execute(
                        "SELECT FROM campaign_jobs.email_messages WHERE event_id = ANY (%s) FOR UPDATE",
                        (ids,),
                    )
                unrecorded.append(len(sender.accepted) + sender.at_once - campaign.statuses()["accepted"])

        sender.answer = look_and_lock
        outcomes = process(job, *deliveries)
    assert max(unrecorded) <= 4
    for outcome in outcomes[:locked]:
        assert isinstance(outcome, Retry)
        assert "accepted, but that could not be recorded" in outcome.reason
    if locked == 1:
        assert outcomes[1:] == [Done()] * 9
    else:
        # Nothing was spent, and no claim was left to be waited for.
        assert outcomes[4:] == [Later("others could not be recorded first", timedelta())] * 6
        assert campaign.statuses() == {"claimed": 4, "released": 6}
    impatient.close()


def test_the_holder_of_an_expired_claim_cannot_overwrite_who_took_over(
    job: EmailJob, second_database: Database, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    quick = RecordingSender()

    def slow(mail: Mail) -> Refused:
        campaign.let_claims_expire()
        assert process(job_of(second_database, quick), delivery) == [Done()]
        return Refused("too late")

    sender.answer = slow
    process(job, delivery)
    assert campaign.mail(delivery) == ("accepted", None)


def test_what_there_is_no_time_for_is_handed_on_unspent(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    outcomes = process(job, *deliveries, seconds=POOLFUL_SECONDS - 1)
    assert outcomes == [Later("no time was left in this invocation", timedelta())] * 3
    assert campaign.statuses() == {"released": 3}
    assert process(job, *deliveries) == [Done()] * 3
    assert len(sender.accepted) == 3


# What SES answers.


def test_throttled_mail_goes_before_the_others_when_the_pause_is_over(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    addresses = [campaign.address(delivery.event.data.user_id) for delivery in deliveries]
    throttles = iter([Throttled(), Throttled()])
    sender.answer = lambda mail: next(throttles, None) if mail.recipient in addresses[:2] else None
    assert process(job, *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}
    order = [mail.recipient for mail in sender.accepted]
    assert set(order[:8]) == set(addresses[2:10])
    assert set(order[8:18]) == {*addresses[:2], *addresses[10:18]}


def test_throttles_without_end_spend_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(12)]
    asked: list[Mail] = []

    def too_much(mail: Mail) -> Throttled:
        asked.append(mail)
        return Throttled()

    sender.answer = too_much
    # After pauses of one and two seconds, one of four does not fit any more.
    with pytest.raises(RateExhausted):
        process(job, *deliveries, seconds=POOLFUL_SECONDS + 6)
    assert len(asked) == 3 * POOL_SIZE
    assert campaign.statuses() == {"released": 12}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * 12
    assert set(sender.sent.values()) == {1}


def test_a_stop_fails_the_batch_records_what_went_and_releases_the_rest(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    last = campaign.address(deliveries[14].event.data.user_id)

    def stop(mail: Mail) -> None:
        if mail.recipient == last:
            raise SendingStopped("SES does not send for this account: SendingPausedException")

    sender.answer = stop
    with pytest.raises(SendingStopped):
        process(job, *deliveries)
    assert len(sender.accepted) == 19
    assert campaign.statuses() == {"accepted": 19, "released": 6}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}


@pytest.mark.parametrize("size", [1, 12])
def test_where_ses_cannot_be_reached_the_batch_waits_and_spends_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, size: int
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(size)]
    sender.answer = lambda mail: Unreached("SES was not reached: ConnectTimeoutError")
    with pytest.raises(SendingStopped, match="SES is not reached"):
        process(job, *deliveries)
    assert campaign.statuses() == {"released": size}
    sender.answer = lambda mail: None
    assert process(job, *deliveries) == [Done()] * size
    assert set(sender.sent.values()) == {1}


def test_one_mail_that_does_not_reach_ses_where_others_do_is_retried(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    address = campaign.address(deliveries[1].event.data.user_id)
    sender.answer = lambda mail: Unreached("not reached") if mail.recipient == address else None
    assert process(job, *deliveries) == [Done(), Retry("not reached"), Done()]


def test_mails_that_ses_fails_spend_their_attempts_though_all_fail(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    """They may be the cause themselves, and kept by Kafka they would keep their partition for ever."""
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    sender.answer = lambda mail: Failed("SES failed: 500")
    assert process(job, *deliveries) == [Retry("SES failed: 500")] * 3


def test_an_answer_that_never_came_keeps_the_claim(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Unknown("no answer from SES: ReadTimeoutError")
    (outcome,) = process(job, delivery)
    # It spends an attempt, since each time may be a mail too many.
    assert isinstance(outcome, Retry) and outcome.after is not None
    # It comes back when the claim has run out, not to find it live again.
    row = campaign.mail(delivery, "status, claimed_until")
    assert row is not None
    assert row[0] == "claimed"
    now = campaign._one("SELECT clock_timestamp()")
    assert now + outcome.after >= row[1]
    assert is_later(process(job, delivery)[0], OTHERS_CLAIM, 130)
    sender.answer = lambda mail: None
    campaign.let_claims_expire()
    assert process(job, delivery) == [Done()]


def test_a_mail_given_up_without_an_answer_leaves_no_claim_and_no_reward_on_its_way(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    theirs = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Unknown("no answer from SES: ReadTimeoutError")
    process(job, delivery)
    claim_elsewhere(campaign.connection, theirs, None)
    job.give_up([(delivery, "no answer, again and again"), (theirs, "not ours to give up")])
    assert campaign.mail(delivery) == ("failed", "no answer, again and again")
    assert campaign.row(user_reward) == ("failed",)
    assert campaign.mail(theirs, "status") == ("claimed",)


@pytest.mark.parametrize("locked", ["email_messages", "user_rewards"])
def test_what_somebody_keeps_locked_is_given_up_when_it_is_free(
    database_url: str, campaign: MailCampaign, sender: RecordingSender, locked: str
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    job = job_of(impatient, sender)
    reward, users = campaign.add_reward("email"), [campaign.add_user() for _ in range(3)]
    rewards = [campaign.earn(reward, user) for user in users]
    asked = [
        campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        for user, user_reward in zip(users, rewards, strict=True)
    ]
    sender.answer = lambda mail: Failed("SES failed: 500")
    process(job, *asked)
    with psycopg.connect(database_url) as holder:
        column, value = ("event_id", asked[1].event.id) if locked == "email_messages" else ("id", rewards[1])
        holder.execute(f"SELECT FROM campaign_jobs.{locked} WHERE {column} = %s FOR UPDATE", (value,))
        ((refused, refusal),) = job.give_up([(delivery, "worn out") for delivery in asked])
    assert refused is asked[1]
    assert refusal.passing
    assert [campaign.row(user_reward) for user_reward in rewards] == [("failed",), ("earned",), ("failed",)]
    assert campaign.mail(refused) == ("failed", "SES failed: 500")
    assert not job.give_up([(refused, "worn out")])
    assert campaign.mail(refused) == ("failed", "worn out")
    assert campaign.row(rewards[1], "status, last_error") == ("failed", "worn out")
    impatient.close()


def test_a_failure_is_retried_and_a_refusal_given_up(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    failing, refused = (
        campaign.asks("welcome", campaign.add_user()),
        campaign.asks("welcome", campaign.add_user()),
    )
    address = campaign.address(failing.event.data.user_id)
    sender.answer = lambda mail: (
        Failed("SES failed: 500") if mail.recipient == address else Refused("SES refused it")
    )
    assert process(job, failing, refused) == [Retry("SES failed: 500"), Rejected("SES refused it")]
    job.give_up([(refused, "SES refused it")])
    assert campaign.mail(failing) == ("failed", "SES failed: 500")
    assert campaign.mail(refused) == ("failed", "SES refused it")
    # Redriven, it is tried again.
    sender.answer = lambda mail: None
    assert process(job, failing, refused) == [Done()] * 2


def test_a_sender_that_breaks_costs_its_neighbors_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(12)]
    address = campaign.address(deliveries[3].event.data.user_id)

    def breaking(mail: Mail) -> None:
        if mail.recipient == address:
            raise ZeroDivisionError(mail.recipient)

    sender.answer = breaking
    outcomes = process(job, *deliveries)
    assert outcomes.count(Done()) == 11
    assert isinstance(outcomes[3], Retry)
    assert outcomes[3].reason == "unexpected ZeroDivisionError"
    # Whether it went is unknown, so it keeps its claim, and comes back after it.
    assert outcomes[3].after is not None
    assert outcomes[3].after > timedelta(seconds=120)
    assert campaign.statuses() == {"accepted": 11, "claimed": 1}


# The account's rate.


def test_what_the_rate_leaves_no_room_for_fails_the_batch_and_spends_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    sender.rate = 4
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(30)]
    with pytest.raises(RateExhausted):
        process(job, *deliveries, seconds=POOLFUL_SECONDS + 3)
    sent = len(sender.accepted)
    assert 1 <= sent < 30
    assert campaign.statuses() == {"accepted": sent, "released": 30 - sent}
    campaign.connection.execute("UPDATE campaign_jobs.send_tokens SET rate = 1000000")
    assert process(job, *deliveries) == [Done()] * 30
    assert set(sender.sent.values()) == {1}


SHORT_RATE_SECONDS = POOLFUL_SECONDS + 30
"""Of an invocation that has no time to wait for a token of `give_two_tokens`."""


def give_two_tokens(campaign: MailCampaign, tokens: int = 2) -> None:
    """And no more for fifty seconds."""
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, looked_up_at) VALUES ('ses', 0.02, %(n)s, now())"
        " ON CONFLICT (name) DO UPDATE SET rate = 0.02, tokens = %(n)s, refilled_at = clock_timestamp()",
        {"n": tokens},
    )


def test_mails_that_ses_refuses_do_not_use_up_a_short_rate_for_ever(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(7)]
    # More than there are tokens for, and they come first.
    addresses = [campaign.address(delivery.event.data.user_id) for delivery in deliveries]
    refused = addresses[:4]
    asked: list[str] = []

    def refuse(mail: Mail) -> SendResult | None:
        asked.append(mail.recipient)
        return Refused("SES refused it") if mail.recipient in refused else None

    sender.answer = refuse
    # As long as there is mail that was never tried, Kafka keeps the batch.
    for _ in range(3):
        give_two_tokens(campaign)
        with pytest.raises(RateExhausted):
            process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    assert asked == [*refused, *addresses[4:6]]
    give_two_tokens(campaign)
    outcomes = process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    assert asked[6:] == [addresses[6], refused[0]]
    assert outcomes[4:] == [Done()] * 3
    # What was refused before and got no token this time is handed on: each alone, it ends there.
    assert outcomes[0] == Rejected("SES refused it")
    assert outcomes[1:4] == [Later("no time was left in this invocation", timedelta())] * 3
    assert campaign.statuses() == {"accepted": 3, "failed": 4}


def test_a_mail_that_failed_before_waits_for_the_rate_as_any_other_when_nothing_is_lost(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Failed("SES failed: 500")
    assert process(job, delivery) == [Retry("SES failed: 500")]
    give_two_tokens(campaign, 0)
    with pytest.raises(RateExhausted):
        process(job, delivery, seconds=SHORT_RATE_SECONDS)
    assert campaign.statuses() == {"failed": 1}


def test_what_was_accepted_and_cannot_be_recorded_is_told_however_short_the_rate(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(8)]
    campaign.connection.execute(
        psycopg.sql.SQL(
            "ALTER TABLE campaign_jobs.email_messages ADD CHECK (event_id <> {} OR status <> 'accepted')"
        ).format(deliveries[0].event.id)
    )
    give_two_tokens(campaign)
    outcomes = process(job, *deliveries, seconds=SHORT_RATE_SECONDS)
    # Kept by Kafka, it would be sent again when its claim has run out.
    assert isinstance(outcomes[0], Rejected)
    assert set(sender.sent.values()) == {1}
    assert Later("no time was left in this invocation", timedelta()) in outcomes


def test_a_bucket_that_somebody_keeps_locked_stops_the_batch_and_leaves_no_claim(
    database_url: str, campaign: MailCampaign, sender: RecordingSender
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    with psycopg.connect(database_url) as holder:
        holding = threading.Lock()

        def lock_the_bucket(_: Mail) -> None:
            with holding:
                holder.execute("SELECT FROM campaign_jobs.send_tokens FOR UPDATE")

        sender.answer = lock_the_bucket
        with pytest.raises(SendingStopped, match="its row is locked"):
            process(job_of(impatient, sender), *deliveries)
        assert campaign.statuses() == {"accepted": 10, "released": 15}
        # The next one is stopped before it claims anything.
        with pytest.raises(SendingStopped, match="its row is locked"):
            process(job_of(impatient, sender), *deliveries)
        assert campaign.statuses() == {"accepted": 10, "released": 15}
        holder.rollback()
    sender.answer = lambda mail: None
    assert process(job_of(impatient, sender), *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}
    impatient.close()


def test_in_a_mixed_batch_bulk_mail_comes_last(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    deliveries = [
        campaign.asks(type_, campaign.add_user(), **data)
        for type_, data in (("milestone", {"milestone": 5}), ("verification", {}))
        for _ in range(12)
    ]
    assert process(job, *deliveries) == [Done()] * 24
    assert [mail.tags["type"] for mail in sender.accepted] == ["verification"] * 12 + ["milestone"] * 12


@pytest.mark.parametrize("why", ["paused", "no rate", "never told"])
def test_an_account_that_may_not_send_claims_nothing(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse() -> float:
        raise RateUnknown("SES refused GetAccount") if why == "never told" else SendingStopped(why)

    delivery = campaign.asks("welcome", campaign.add_user())
    if why != "never told":
        # A rate that was learned before does not hide that the account may not send now.
        campaign.connection.execute("INSERT INTO campaign_jobs.send_tokens (name, rate) VALUES ('ses', 1000)")
    with monkeypatch.context() as patch:
        patch.setattr(sender, "max_send_rate", refuse)
        for _ in range(2):
            with pytest.raises(SendingStopped):
                process(job, delivery)
    assert campaign.statuses() == {}
    # As soon as it may, the next one goes.
    assert process(job, delivery) == [Done()]


# Parked mail.


def test_parked_mail_goes_out_under_its_id_when_the_campaign_goes_on(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(status="paused")
    user = campaign.add_user()
    kept = campaign.asks(
        "welcome", user, template_data={"note": "Grüße\n🎉", "share": 0.1, "rank": 7}, priority=3
    )
    gone = campaign.asks("verification", removed := campaign.add_user())
    assert process(job, kept, gone) == [Skipped("parked: the campaign is paused")] * 2
    assert campaign.mail(kept) == ("parked", "the campaign is paused")
    assert store.release_parked(campaign.connection, limit=10) == 0
    campaign.set(status="active")
    campaign.change_user(removed, status="removed")
    assert store.release_parked(campaign.connection, limit=1) == 1
    assert store.release_parked(campaign.connection, limit=10) == 1
    assert store.release_parked(campaign.connection, limit=10) == 0
    assert campaign.statuses() == {"released": 2}
    assert process(job, kept, gone) == [Done(), Skipped("the user is removed")]
    assert campaign.mail(kept) == ("accepted", None)


def test_a_released_event_is_the_one_that_was_parked(job: EmailJob, campaign: MailCampaign) -> None:
    campaign.set(status="paused")
    data = {"note": 'Grüße\n🎉 "\\', "share": 0.1, "rank": 2**53, "big": 1e308}
    kept = campaign.asks("welcome", campaign.add_user(), template_data=data, priority=3)
    process(job, kept)
    campaign.set(status="ended")
    assert store.release_parked(campaign.connection, limit=10) == 1
    row = campaign.connection.execute(
        "SELECT event_id, partition_key, event FROM campaign_jobs.outbox"
    ).fetchone()
    assert row is not None
    assert row[:2] == (kept.event.id, str(kept.event.data.user_id))
    assert EVENT_ADAPTER.validate_python(row[2]) == kept.event


def test_a_parked_event_that_fits_the_contract_no_more_holds_up_no_other(
    job: EmailJob, campaign: MailCampaign
) -> None:
    campaign.set(status="paused")
    old, other = (campaign.asks("welcome", campaign.add_user()) for _ in range(2))
    process(job, old, other)
    campaign.connection.execute(
        'UPDATE campaign_jobs.email_messages SET parked_event = \'{"type": "job.email.farewell"}\' WHERE event_id = %s',
        (old.event.id,),
    )
    campaign.set(status="active")
    assert store.release_parked(campaign.connection, limit=10) == 2


def test_an_event_that_relay_could_not_publish_again_is_not_parked(
    job: EmailJob, campaign: MailCampaign
) -> None:
    campaign.set(status="paused")
    # Within the limit as it came, but not with what has been filled in since.
    texts = {f"text_{number}": "é" * 2_600 for number in range(50)}
    value = as_value(campaign.asks("welcome", campaign.add_user(), template_data=texts).event)
    texts["text_0"] += "x" * (MAX_VALUE_BYTES + 1 - len(value))
    delivery = campaign.asks("welcome", campaign.add_user(), template_data=texts)
    assert len(as_value(delivery.event)) == MAX_VALUE_BYTES + 1
    assert process(job, delivery, campaign.asks("welcome", campaign.add_user())) == [
        Rejected("the event is too large to be parked"),
        Skipped("parked: the campaign is paused"),
    ]


# Templates.


def test_the_campaigns_template_comes_before_the_default_and_that_before_the_built_in(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    def subject(**data: Any) -> str:
        assert process(job, campaign.asks("welcome", campaign.add_user(first_name="Ada"), **data)) == [Done()]
        return sender.accepted[-1].content.subject

    built_in = subject()
    campaign.add_template(everywhere=True, subject="Default for {{ user_first_name }}")
    assert subject() == "Default for Ada" != built_in
    campaign.add_template(subject="Off", enabled=False, version=7)
    campaign.add_template("milestone", subject="Another type")
    MailCampaign(campaign.connection).add_template(subject="Another campaign's")
    assert subject() == "Default for Ada"
    campaign.add_template(subject="Own for {{ data.plan }}")
    assert subject(template_data={"plan": "<pro>"}) == "Own for <pro>"
    named = campaign.add_template(subject="Named", enabled=False, version=9)
    assert subject(template_id=str(named)) == "Named"
    everywhere = campaign.add_template(subject="Default, named", everywhere=True, enabled=False, version=9)
    assert subject(template_id=str(everywhere)) == "Default, named"


@pytest.mark.parametrize("german_first", [True, False])
def test_a_template_named_by_one_event_is_not_another_ones(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, german_first: bool
) -> None:
    def add_german() -> uuid.UUID:
        return campaign.add_template(subject="Willkommen", locale="de", version=2)

    german = add_german() if german_first else None
    campaign.add_template(subject="Welcome")
    german = german or add_german()
    one, other = campaign.add_user(), campaign.add_user()
    assert (
        process(job, campaign.asks("welcome", one, template_id=str(german)), campaign.asks("welcome", other))
        == [Done()] * 2
    )
    subjects = {mail.recipient: mail.content.subject for mail in sender.accepted}
    assert subjects == {campaign.address(one): "Willkommen", campaign.address(other): "Welcome"}


def test_a_broken_template_is_named_and_disturbs_nobody_else(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.add_template(version=3, html="<p>\n{{ 1 / 0 }}</p>")
    broken, fine = (
        campaign.asks("welcome", campaign.add_user()),
        campaign.asks("verification", campaign.add_user()),
    )
    rejected, done = process(job, broken, fine)
    assert done == Done()
    assert isinstance(rejected, Rejected)
    assert f"campaign {campaign.id} welcome v3" in rejected.reason
    assert "line 2" in rejected.reason
    assert campaign.mail(broken) is None
    job.give_up([(broken, rejected.reason)])
    assert campaign.mail(broken) == ("failed", rejected.reason)
    # Mended and redriven, it goes: what failed has used up no once-key.
    campaign.connection.execute("UPDATE campaign_jobs.email_templates SET html = '<p>Hello</p>'")
    assert process(job, broken) == [Done()]
    assert len(sender.accepted) == 2


@pytest.mark.parametrize("wrong", ["nobody's", "another campaign's", "another type's"])
def test_a_named_template_must_be_there_for_the_event(
    job: EmailJob, campaign: MailCampaign, wrong: str
) -> None:
    if wrong == "another type's":
        template = campaign.add_template("milestone")
    elif wrong == "another campaign's":
        template = MailCampaign(campaign.connection).add_template()
    else:
        template = uuid.uuid4()
    assert process(job, campaign.asks("welcome", campaign.add_user(), template_id=str(template))) == [
        Rejected(f"template {template} is not a welcome template of this campaign")
    ]


def test_a_verification_needs_a_link_and_the_others_do_not(
    job: EmailJob, database: Database, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(public_base_url=None)
    user = campaign.add_user()
    asked, welcome = campaign.asks("verification", user), campaign.asks("welcome", user)
    assert process(job, asked, welcome) == [
        Rejected("the campaign has no public_base_url and DEFAULT_PUBLIC_BASE_URL is not set"),
        Done(),
    ]
    with_default = job_of(database, sender, default_base_url="https://default.example.com")
    assert process(with_default, asked) == [Done()]
    assert "https://default.example.com/verify?token=" in sender.accepted[-1].content.text
    campaign.change_user(user, verification_token=None)
    assert process(with_default, campaign.asks("verification", user)) == [
        Rejected("the user has no verification_token to build the link from")
    ]


# Rows that are missing or do not fit.


@pytest.mark.parametrize("missing", ["user", "campaign", "user reward"])
def test_a_row_that_is_not_there_yet_is_waited_for(
    job: EmailJob, campaign: MailCampaign, missing: str
) -> None:
    user = campaign.add_user()
    event = campaign.event("reward_earned", user, user_reward_id=str(uuid.uuid4()))
    if missing == "user":
        event["data"]["user_id"] = str(uuid.uuid4())
    if missing == "campaign":
        event["data"]["campaign_id"] = str(uuid.uuid4())
    assert is_later(process(job, delivery_of(event))[0], f"the {missing} is not there yet", 30)
    assert is_later(
        process(job, delivery_of(event, age=timedelta(minutes=9)))[0], f"the {missing} is not there yet", 60
    )
    late = delivery_of(event, age=timedelta(minutes=10))
    rejected = Rejected(f"the {missing} is not there, after waiting 10 min")
    assert process(job, late) == [rejected]
    # There is nothing to write it down for, and that does no harm.
    job.give_up([(late, rejected.reason)])
    assert campaign.mail(late) is None


def test_an_event_that_contradicts_the_database_changes_nobody_elses_reward(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    victim, other = campaign.add_user(), campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), victim)
    confused = campaign.asks("reward_earned", other, user_reward_id=str(user_reward))
    reason = "the user reward belongs to another user"
    assert process(job, confused) == [Rejected(reason)]
    job.give_up([(confused, reason)])
    assert campaign.row(user_reward) == ("earned",)
    elsewhere = MailCampaign(campaign.connection).asks("welcome", victim)
    assert process(job, elsewhere) == [Rejected("the user belongs to another campaign")]
    job.give_up([(elsewhere, "the user belongs to another campaign")])
    assert not sender.accepted


@pytest.mark.parametrize("other", ["another type", "another milestone", "another user"])
def test_an_id_that_was_used_for_another_mail_is_refused_and_changes_nothing_of_that(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, other: str
) -> None:
    user = campaign.add_user()
    campaign.set(status="paused")
    first = campaign.asks("milestone", user, milestone=5)
    assert process(job, first) == [Skipped("parked: the campaign is paused")]
    campaign.set(status="active")
    # The first one's once-key is taken, which nobody who reuses its id must wait for.
    assert process(job, campaign.asks("milestone", user, milestone=5)) == [Done()]
    if other == "another type":
        reused = campaign.asks("verification", user, first.event.id)
    elif other == "another milestone":
        reused = campaign.asks("milestone", user, first.event.id, milestone=6)
    else:
        reused = campaign.asks("milestone", campaign.add_user(), first.event.id, milestone=5)
    reason = "the event's id was used before, for another mail"
    assert process(job, reused) == [Rejected(reason)]
    job.give_up([(reused, reason)])
    assert campaign.mail(first) == ("parked", "the campaign is paused")
    assert len(sender.accepted) == 1


# Rewards.


@pytest.mark.parametrize("blocked", [False, True])
def test_a_held_reward_goes_back_to_earned_and_the_mail_is_skipped(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, blocked: bool
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    case = campaign.open_case(user_reward)
    if blocked:
        campaign.change_user(user, status="blocked")
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    assert process(job, asked) == [Skipped("a fraud case holds the reward")]
    assert campaign.row(user_reward, "status, held_at IS NOT NULL") == ("earned", True)
    campaign.dismiss(case)
    campaign.change_user(user, status="pending")
    again = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    assert process(job, again) == [Done()]
    assert campaign.row(user_reward) == ("delivered",)
    assert len(sender.accepted) == 1


@pytest.mark.parametrize("dead", [True, False])
def test_a_reward_whose_mail_is_skipped_or_dead_is_failed_with_the_reason(
    job: EmailJob, campaign: MailCampaign, dead: bool
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    if dead:
        job.give_up([(asked, "SES refused the mail")])
        reason = "SES refused the mail"
    else:
        campaign.change_user(user, status="removed")
        process(job, asked)
        reason = "the user is removed"
    assert campaign.row(user_reward, "status, last_error") == ("failed", reason)


@pytest.mark.parametrize("when", ["the rate is looked up", "it is claimed"])
def test_a_hold_that_begins_before_the_claim_is_committed_stops_the_mail(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    asked = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
    other = campaign.asks("welcome", user)
    claim = store.claim

    def look_up() -> float:
        campaign.open_case(user_reward)
        return sender.rate

    def hold_and_claim(*arguments: Any, **named: Any) -> set[str]:
        campaign.open_case(user_reward)
        return claim(*arguments, **named)

    if when == "it is claimed":
        monkeypatch.setattr(store, "claim", hold_and_claim)
        outcomes = process(job, asked, other)
        assert is_later(outcomes[0], CHANGED, 10)
        assert campaign.mail(asked) == ("released", CHANGED)
        assert outcomes[1] == Done()
        asked_again = process(job, asked)
    else:
        monkeypatch.setattr(sender, "max_send_rate", look_up)
        asked_again = process(job, asked)
    assert asked_again == [Skipped("a fraud case holds the reward")]
    assert ("reward_earned", campaign.address(user)) not in sender.sent


def test_a_mail_about_a_webhooks_reward_does_not_deliver_it(job: EmailJob, campaign: MailCampaign) -> None:
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("manual"), user)
    assert process(job, campaign.asks("reward_earned", user, user_reward_id=str(user_reward))) == [Done()]
    assert campaign.row(user_reward) == ("earned",)


# Batches.


@pytest.mark.parametrize("status", ["claimed", "skipped", "accepted"])
def test_one_bad_row_does_not_fail_its_batch(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, status: str
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(8)]
    if status == "skipped":
        campaign.set(status="ended")
    bad = deliveries[5]
    campaign.connection.execute(
        psycopg.sql.SQL(
            "ALTER TABLE campaign_jobs.email_messages ADD CHECK (event_id <> {} OR status <> {})"
        ).format(bad.event.id, status)
    )
    outcomes = process(job, *deliveries)
    refused = outcomes.pop(5)
    assert outcomes == [Skipped("the campaign has ended") if status == "skipped" else Done()] * 7
    assert campaign.statuses()[{"claimed": "accepted"}.get(status, status)] == 7
    assert "email_messages_check" in getattr(refused, "reason", "")
    if status == "accepted":
        # It went out, so that trying again would only send it again.
        assert isinstance(refused, Rejected)
        assert set(sender.sent.values()) == {1}
        job.give_up([(bad, refused.reason)])
        assert campaign.mail(bad) == ("failed", refused.reason)
    else:
        assert isinstance(refused, Retry)


def test_the_number_of_statements_does_not_grow_with_the_batch(
    job: EmailJob, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = campaign.add_reward("email")
    statements: list[Any] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        statements.append(query)
        return execute(self, query, *arguments, **named)

    def batch_of(size: int) -> list[Delivery[EmailEvent]]:
        deliveries = []
        for number in range(size):
            user = campaign.add_user()
            match number % 5:
                case 0:
                    deliveries.append(campaign.asks("verification", user))
                case 1:
                    campaign.change_user(user, original_position=100_000 + campaign.people)
                    campaign.rank(user, campaign.people)
                    deliveries.append(campaign.asks("position_update", user))
                case 2:
                    user_reward = campaign.earn(reward, user)
                    deliveries.append(campaign.asks("reward_earned", user, user_reward_id=str(user_reward)))
                case 3:
                    campaign.change_user(user, status="removed")
                    deliveries.append(campaign.asks("welcome", user))
                case 4:
                    deliveries.append(campaign.asks("milestone", uuid.uuid4(), milestone=3))
        return deliveries

    # From an empty bucket a grant may take more than one statement.
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, looked_up_at)"
        " VALUES ('ses', 1000000, 1000000, now())"
    )
    counts = []
    for size in (10, 200):
        deliveries = batch_of(size)
        with monkeypatch.context() as counting:
            counting.setattr(psycopg.Cursor, "execute", counted)
            statements.clear()
            outcomes = process(job, *deliveries)
            counts.append(len(statements))
        assert outcomes.count(Done()) == size * 3 / 5
    # 6 mails went in a pool-full of each lane, 120 in eight and four: a grant and a record for each, and a settlement
    # where there may be rewards.
    assert counts[1] - counts[0] == 7 * 3 + 3 * 2
    assert counts[0] <= 15


# Any history.


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    event = st.tuples(st.just("deliver"), st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True))
    other = st.sampled_from(
        [
            *(("campaign", status) for status in ("active", "active", "paused", "ended")),
            *(
                ("ses", answer)
                for answer in ("accepts", "accepts", "throttles", "refuses", "stops", "is silent")
            ),
            ("crash", None),
            ("expire", None),
            ("release", None),
            ("give up", None),
            ("user", "removed"),
            ("user", "pending"),
        ]
    )
    return draw(st.lists(event | event | other, min_size=3, max_size=14))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(histories())
def test_in_any_history_what_goes_once_is_accepted_once(
    database: Database, connection: Connection, history: list[tuple[str, Any]]
) -> None:
    campaign, sender = MailCampaign(connection), RecordingSender()
    job = job_of(database, sender, pool_size=3)
    users = [campaign.add_user(), campaign.add_user()]
    user_reward = campaign.earn(campaign.add_reward("email"), users[0])
    events = [
        campaign.asks(type_, user, None, **data)
        for user in users
        for type_, data in (("welcome", {}), ("milestone", {"milestone": 5}))
        for _ in range(2)
    ]
    events += [campaign.asks("reward_earned", users[0], user_reward_id=str(user_reward)) for _ in range(3)]
    events.append(campaign.asks("verification", users[1]))
    answers: dict[str, SendResult] = {
        "throttles": Throttled(),
        "refuses": Refused("no"),
        "is silent": Unknown("?"),
    }
    unrecorded = 0

    answer = ["accepts"]

    def answering(mail: Mail) -> SendResult | None:
        if answer[0] == "stops":
            raise SendingStopped("paused")
        return answers.get(answer[0])

    sender.answer = answering
    for action, detail in [*history, ("ses", "accepts"), ("campaign", "active"), ("expire", None)]:
        match action:
            case "deliver":
                # Throttled, it would ask again until the deadline.
                seconds = POOLFUL_SECONDS + 1 if answer[0] == "throttles" else 100
                try:
                    outcomes = process(job, *(events[number] for number in detail), seconds=seconds)
                    assert len(outcomes) == len(detail)
                except SendingStopped:
                    pass
            case "crash":
                before = len(sender.accepted)
                with pytest.MonkeyPatch.context() as dying:
                    crash_while_recording(dying, 1)
                    try:
                        process(job, *events[::2], seconds=POOLFUL_SECONDS + 1)
                    except (Crash, SendingStopped):
                        unrecorded += len(sender.accepted) - before
            case "ses":
                answer[0] = detail
            case "campaign":
                campaign.set(status=detail)
            case "user":
                campaign.change_user(users[0], status=detail)
            case "expire":
                campaign.let_claims_expire()
            case "release":
                store.release_parked(connection, limit=10)
            case "give up":
                job.give_up([(events[0], "gave up")])
    process(job, *events)
    process(job, *events)
    rows = connection.execute(
        "SELECT once_key, count(*) FILTER (WHERE status = 'accepted'), count(*) FROM campaign_jobs.email_messages"
        " WHERE campaign_id = %s AND once_key IS NOT NULL GROUP BY 1",
        (campaign.id,),
    ).fetchall()
    assert all(accepted <= 1 for _, accepted, _ in rows)
    repeated = sum(count - 1 for (type_, _), count in sender.sent.items() if type_ != "verification")
    assert repeated <= unrecorded
    assert campaign.statuses()["claimed"] == 0


def test_a_database_that_is_lost_on_the_way_stops_the_batch(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    record = store.record

    def cut_off(connection: Connection, *arguments: Any, **named: Any) -> Any:
        campaign.connection.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        return record(connection, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(store, "record", cut_off)
        with pytest.raises(DatabaseUnavailable):
            process(job, delivery)
    campaign.let_claims_expire()
    assert process(job, delivery) == [Done()]
    assert len(sender.accepted) == 2
