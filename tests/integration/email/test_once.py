"""What goes only once goes once, whoever else delivers it, and whatever dies on the way."""

import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.sending import POOLFUL_SECONDS
from campaign_jobs.email.ses import Mail, Refused, SendResult, Throttled, Unknown
from campaign_jobs.errors import DatabaseUnavailable, SendingStopped
from campaign_jobs.events import EmailEvent
from campaign_jobs.worker.delivery import Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Retry, Skipped
from tests.integration.email.jobs import (
    OTHERS_CLAIM,
    POOL_SIZE,
    Crash,
    Holder,
    crash_while_recording,
    is_later,
    job_of,
    losing_the_connection,
    process,
)
from tests.integration.email_campaign import MailCampaign, RecordingSender, claim_elsewhere

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
        while not campaign._one(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
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
    impatient: Database, campaign: MailCampaign, sender: RecordingSender, holder: Holder, locked: int
) -> None:
    job = job_of(impatient, sender, pool_size=4)
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(10)]
    unrecorded: list[int] = []
    looking = threading.Lock()

    def look_and_lock(mail: Mail) -> None:
        with looking:
            if not unrecorded:
                holder.hold(*deliveries[:locked])
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
            ("lose the database", None),
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
    # What a crash may repeat, and what a lost database may where its claims run out before it is recorded.
    unrecorded = left_behind = 0

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
                left_behind = 0
            case "crash":
                before = len(sender.accepted)
                with pytest.MonkeyPatch.context() as dying:
                    crash_while_recording(dying, 1)
                    try:
                        process(job, *events[::2], seconds=POOLFUL_SECONDS + 1)
                    except (Crash, SendingStopped):
                        unrecorded += len(sender.accepted) - before
                # What the process had left behind is gone with it.
                unrecorded, left_behind = unrecorded + left_behind, 0
                job = job_of(database, sender, pool_size=3)
            case "lose the database":
                before = len(sender.accepted)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(store, "record", losing_the_connection)
                    with suppress(DatabaseUnavailable, SendingStopped):
                        process(job, *events[::2], seconds=POOLFUL_SECONDS + 1)
                left_behind += len(sender.accepted) - before
            case "ses":
                answer[0] = detail
            case "campaign":
                campaign.set(status=detail)
            case "user":
                campaign.change_user(users[0], status=detail)
            case "expire":
                campaign.let_claims_expire()
                unrecorded, left_behind = unrecorded + left_behind, 0
            case "release":
                store.release_parked(connection, limit=10)
            case "give up":
                # At the end of an invocation, which has begun with what was left behind.
                process(job)
                job.give_up([(events[0], "gave up")])
                left_behind = 0
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
