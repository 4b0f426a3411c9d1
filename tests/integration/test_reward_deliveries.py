"""Rewards by email and by hand, holds, patience, and how the email job settles a reward."""

import threading
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.events import parse
from campaign_jobs.fraud import cases
from campaign_jobs.fraud.blocking import unblock
from campaign_jobs.reward.decisions import CHANGED_MEANWHILE
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.settlement import (
    EmailedReward,
    NotDeliverable,
    deliver_manually,
    fail_forgotten,
    settle_emailed,
)
from campaign_jobs.reward.webhooks.client import Answer
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Skipped
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign, RecordingSender
from tests.integration.email_campaign import delivery_of as mail_delivery_of
from tests.integration.reward_campaign import Campaign, deadline, delivery_of


class Counting:
    """Answers 200 without a network, for what is about the database."""

    total_seconds = 15.0
    posts = 0

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG002
        self.posts += 1
        return Answer(200, None, None, timedelta(milliseconds=3))


@pytest.fixture
def client() -> Counting:
    return Counting()


@pytest.fixture
def job(database: Database, client: Counting) -> RewardJob:
    return RewardJob(database, client, pool_size=10)


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


@pytest.fixture
def by_email(campaign: Campaign) -> uuid.UUID:
    return campaign.add_reward("email")


@pytest.fixture
def by_webhook(campaign: Campaign) -> uuid.UUID:
    return campaign.add_reward("webhook", campaign.add_endpoint("https://hooks.example.com/"))


def settle(database: Database, *settlements: EmailedReward) -> None:
    with database.transaction() as connection:
        settle_emailed(connection, settlements)


# By email.


def test_a_mail_is_asked_for_once_however_often_the_event_comes(
    job: RewardJob, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    delivery = delivery_of(user_reward)
    assert job.process([delivery], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, claim_token") == ("delivering", None)
    (event,) = campaign.emitted()
    (user,) = campaign.row(user_reward, "user_id")
    assert event["type"] == "job.email.reward_earned"
    assert event["data"] == {
        "type": "reward_earned",
        "campaign_id": str(campaign.id),
        "user_id": str(user),
        "user_reward_id": str(user_reward),
        "priority": 0,
    }
    parse(event, recorded_at=delivery.event.timestamp)
    for repetition in (delivery, delivery_of(user_reward)):
        assert job.process([repetition], deadline()) == [Skipped("its mail is on its way")]
    assert len(campaign.emitted()) == 1


def test_racing_deliveries_ask_for_one_mail(
    database_url: str, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    start = threading.Barrier(5)
    outcomes: list[object] = []

    def race() -> None:
        database = Database(database_url)
        start.wait()
        outcomes.extend(
            RewardJob(database, Counting(), pool_size=1).process([delivery_of(user_reward)], deadline())
        )
        database.close()

    threads = [threading.Thread(target=race) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Done()) == 1 and len(outcomes) == 5
    assert len(campaign.emitted()) == 1


def test_a_mail_that_failed_is_asked_for_anew_by_a_redrive_of_the_same_event(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    delivery = delivery_of(user_reward)
    job.process([delivery], deadline())
    settle(database, EmailedReward(user_reward, "failed", "the address is suppressed"))
    assert campaign.row(user_reward, "status, last_error") == ("failed", "the address is suppressed")
    assert job.process([delivery], deadline()) == [Done()]
    assert len({event["id"] for event in campaign.emitted()}) == 2


def test_a_mail_that_died_without_a_word_is_asked_for_again_after_a_day(
    job: RewardJob, database: Database, connection: Connection
) -> None:
    campaign, sender = MailCampaign(connection), RecordingSender()
    mails = EmailJob(
        database, sender, pool_size=2, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )
    user_reward = campaign.earn(campaign.add_reward("email"))
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]

    def ages(table: str, column: str, by: str) -> None:
        connection.execute(f"UPDATE campaign_jobs.{table} SET {column} = {column} - interval '{by}'".encode())

    def asked_again() -> list[Outcome]:
        outcomes = list(job.process([delivery_of(user_reward)], deadline()))
        assert job.process([delivery_of(user_reward)], deadline()) == [Skipped("its mail is on its way")]
        return outcomes

    ages("user_rewards", "mail_asked_at", "23 hours")
    assert asked_again() == [Skipped("its mail is on its way")]
    # Its event killed the function, or SQS moved its message: nobody has told the reward.
    ages("user_rewards", "mail_asked_at", "2 hours")
    assert asked_again() == [Done()]
    first, second = (mail_delivery_of(event) for event in campaign.emitted())
    # A mail that is parked waits however long it takes.
    campaign.set(status="paused")
    assert mails.process([second], deadline()) == [Skipped("parked: the campaign is paused")]
    ages("user_rewards", "mail_asked_at", "2 days")
    ages("email_messages", "updated_at", "2 days")
    assert asked_again() == [Skipped("its mail is on its way")]
    # The first one was redriven after all.
    campaign.set(status="active")
    assert mails.process([first], deadline()) == [Done()]
    assert mails.process([second], deadline()) == [Skipped("it has been sent for another event")]
    assert len(sender.accepted) == 1
    assert campaign.row(user_reward) == ("delivered",)


def test_a_claim_on_a_mail_that_killed_its_process_keeps_nobody_away_for_longer_than_a_day(
    job: RewardJob, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    job.process([delivery_of(user_reward)], deadline())
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET mail_asked_at = mail_asked_at - interval '2 days'"
    )
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, user_reward_id, status,"
        " claim_token, claimed_until, updated_at)"
        " SELECT 'killer', 'reward_earned', campaign_id, user_id, id, 'claimed',"
        " gen_random_uuid(), now(), now() - interval '23 hours' FROM campaign_jobs.user_rewards"
    )
    assert job.process([delivery_of(user_reward)], deadline()) == [Skipped("its mail is on its way")]
    campaign.connection.execute(
        "UPDATE campaign_jobs.email_messages SET updated_at = updated_at - interval '2 hours'"
    )
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]


def test_a_delivery_that_nobody_can_have_any_more_failed(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID, by_webhook: uuid.UUID
) -> None:
    mailed, recent, parked, hooked, claimed = (
        campaign.earn(reward) for reward in (by_email, by_email, by_email, by_webhook, by_webhook)
    )
    job.process([delivery_of(id_) for id_ in (mailed, recent, parked)], deadline())
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET mail_asked_at = mail_asked_at - interval '23 days' WHERE id <> %s",
        (recent,),
    )
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_messages (event_id, type, campaign_id, user_id, user_reward_id, status,"
        " reason, parked_event, updated_at) SELECT 'parked', 'reward_earned', campaign_id, user_id, id, 'parked',"
        " 'the campaign is paused', '{}', now() - interval '23 days' FROM campaign_jobs.user_rewards WHERE id = %s",
        (parked,),
    )
    for id_, days in ((hooked, 23), (claimed, 21)):
        campaign.connection.execute(
            "UPDATE campaign_jobs.user_rewards SET status = 'delivering', claim_token = gen_random_uuid(),"
            " claimed_until = now() - make_interval(days => %s) WHERE id = %s",
            (days, id_),
        )
    with database.transaction() as own:
        assert fail_forgotten(own) == 2
        assert fail_forgotten(own) == 0
    failed = ("failed", "its delivery was begun and never ended", None)
    assert [campaign.row(id_, "status, last_error, claim_token") for id_ in (mailed, hooked)] == [failed] * 2
    assert [campaign.row(id_) for id_ in (recent, parked, claimed)] == [("delivering",)] * 3
    # It is as any other that failed.
    assert job.process([delivery_of(mailed), delivery_of(hooked)], deadline()) == [Done(), Done()]


def test_an_accepted_mail_delivers(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID, by_webhook: uuid.UUID
) -> None:
    mailed, never_handed_over, other_method = (
        campaign.earn(by_email),
        campaign.earn(by_email),
        campaign.earn(by_webhook),
    )
    job.process([delivery_of(mailed)], deadline())
    settle(
        database,
        *(EmailedReward(id_, "accepted") for id_ in (mailed, never_handed_over, other_method, uuid.uuid4())),
    )
    for id_ in (mailed, never_handed_over):
        assert campaign.row(id_, "status, delivered_at IS NOT NULL") == ("delivered", True)
    assert campaign.row(other_method) == ("earned",)
    (delivered_at,) = campaign.row(mailed, "delivered_at")
    for result in ("failed", "held", "accepted"):
        settle(database, EmailedReward(mailed, result, "late"))
        assert campaign.row(mailed, "status, delivered_at, held_at") == ("delivered", delivered_at, None)


def test_a_dead_mail_that_is_redriven_and_accepted_delivers_after_all(
    database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    settle(database, EmailedReward(user_reward, "failed", "SES refused it"))
    settle(database, EmailedReward(user_reward, "accepted"))
    assert campaign.row(user_reward, "status, last_error") == ("delivered", None)


def test_a_reward_that_a_service_settled_meanwhile_stays(
    database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    redeemed, revoked = campaign.earn(by_email), campaign.earn(by_email)
    for id_, status in ((redeemed, "redeemed"), (revoked, "revoked")):
        campaign.connection.execute(
            "UPDATE campaign_jobs.user_rewards SET status = %s WHERE id = %s", (status, id_)
        )
        settle(database, EmailedReward(id_, "accepted"), EmailedReward(uuid.uuid4(), "accepted"))
    assert campaign.row(redeemed, "status, delivered_at IS NOT NULL") == ("redeemed", True)
    assert campaign.row(revoked, "status, delivered_at") == ("revoked", None)


def test_a_mail_skipped_for_a_hold_leaves_the_reward_held(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    job.process([delivery_of(user_reward)], deadline())
    campaign.publish_all()
    campaign.open_case(user_reward)
    settle(database, EmailedReward(user_reward, "held", "a fraud case holds the reward"))
    assert campaign.row(user_reward, "status, held_at IS NOT NULL") == ("earned", True)
    assert campaign.emitted() == []


def test_a_mail_skipped_for_a_confirmed_case_revokes_the_reward(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    confirmed, still_open = campaign.earn(by_email), campaign.earn(by_email)
    job.process([delivery_of(confirmed), delivery_of(still_open)], deadline())
    campaign.open_case(confirmed, status="confirmed")
    campaign.open_case(still_open)
    settle(
        database, *(EmailedReward(id_, "held", "a fraud case holds it") for id_ in (confirmed, still_open))
    )
    assert campaign.row(confirmed, "status, held_at IS NOT NULL") == ("revoked", True)
    assert campaign.row(still_open, "status, held_at IS NOT NULL") == ("earned", True)


def test_a_hold_that_ended_before_its_mail_was_recorded_asks_for_the_delivery_again(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_email)
    job.process([delivery_of(user_reward)], deadline())
    campaign.publish_all()
    campaign.dismiss(campaign.open_case(user_reward))
    settle(database, EmailedReward(user_reward, "held", "a fraud case holds the reward"))
    assert campaign.row(user_reward, "status, held_at") == ("earned", None)
    (event,) = campaign.emitted()
    assert event["type"] == "job.reward.deliver"
    assert job.process([delivery_of(user_reward, event_id=event["id"])], deadline()) == [Done()]


# Holds.


@pytest.mark.parametrize("method", ["by_email", "by_webhook"])
@pytest.mark.parametrize(
    ("case", "held"), [(("open", True), True), (("confirmed", False), True), (("open", False), False)]
)
def test_an_open_holding_case_or_a_confirmed_one_holds(
    job: RewardJob,
    client: Counting,
    campaign: Campaign,
    request: pytest.FixtureRequest,
    method: str,
    case: tuple[str, bool],
    held: bool,
) -> None:
    user_reward = campaign.earn(request.getfixturevalue(method))
    campaign.open_case(user_reward, status=case[0], holding=case[1])
    outcomes = job.process([delivery_of(user_reward)], deadline())
    assert outcomes == [Skipped("held by a fraud case") if held else Done()]
    assert campaign.row(user_reward, "held_at IS NOT NULL") == (held,)
    if held:
        # A confirmed case revoked what it held when it was confirmed; what comes due later goes the same way.
        assert campaign.row(user_reward) == ("revoked" if case[0] == "confirmed" else "earned",)
        assert client.posts == 0 and campaign.emitted() == []


def test_a_dismissed_hold_is_delivered_and_no_longer_marked(
    job: RewardJob, campaign: Campaign, by_webhook: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_webhook)
    case = campaign.open_case(user_reward)
    job.process([delivery_of(user_reward)], deadline())
    campaign.dismiss(case)
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, held_at") == ("delivered", None)


@pytest.mark.parametrize(
    ("decision", "outcome", "left"),
    [
        ("dismissed", CHANGED_MEANWHILE, ("earned", False)),
        ("confirmed", Skipped("held by a fraud case"), ("revoked", True)),
    ],
)
def test_a_decision_that_is_under_way_is_waited_for(
    job: RewardJob,
    database_url: str,
    campaign: Campaign,
    by_webhook: uuid.UUID,
    decision: str,
    outcome: object,
    left: tuple[str, bool],
) -> None:
    """Else it would look for marks before this one is there, and nobody would emit the delivery again, or revoke it."""
    user_reward = campaign.earn(by_webhook)
    case = campaign.open_case(user_reward)
    outcomes: list[object] = []
    with psycopg.connect(database_url) as dismissing:
        dismissing.execute(
            "UPDATE campaign_jobs.fraud_cases SET status = %s, decided_at = now(), decision_reason = 'seen'"
            " WHERE id = %s",
            (decision, case),
        )
        thread = threading.Thread(
            target=lambda: outcomes.extend(job.process([delivery_of(user_reward)], deadline()))
        )
        thread.start()
        while not campaign.connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone():
            assert thread.is_alive()
            time.sleep(0.005)
        dismissing.commit()
    thread.join()
    assert outcomes == [outcome]
    assert campaign.row(user_reward, "status, held_at IS NOT NULL") == left


@pytest.mark.parametrize("found_by", ["reward", "email"])
def test_what_a_blocking_case_withheld_comes_back_when_it_is_dismissed(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID, found_by: str
) -> None:
    user_reward = campaign.earn(by_email)
    if found_by == "email":
        job.process([delivery_of(user_reward)], deadline())
    case = campaign.block(user_reward)
    campaign.publish_all()
    if found_by == "reward":
        assert job.process([delivery_of(user_reward)], deadline()) == [Skipped("held by a fraud case")]
    else:
        settle(database, EmailedReward(user_reward, "held", "a fraud case holds the reward"))
    assert campaign.row(user_reward, "status, held_at IS NOT NULL") == ("earned", True)
    with database.transaction() as connection:
        cases.dismiss(connection, case, reason="two people")
    (event,) = campaign.emitted()
    assert job.process([delivery_of(user_reward, event_id=event["id"])], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, held_at") == ("delivering", None)


@pytest.mark.parametrize("found_by", ["reward", "email"])
def test_a_hold_lasts_until_its_block_is_taken_back(
    job: RewardJob, database: Database, campaign: Campaign, by_email: uuid.UUID, found_by: str
) -> None:
    """Else a delivery between the end of a case and the end of its block would find its user blocked for good."""
    user_reward = campaign.earn(by_email)
    if found_by == "email":
        job.process([delivery_of(user_reward)], deadline())
    case = campaign.block(user_reward)
    campaign.publish_all()
    campaign.connection.execute(
        "UPDATE campaign_jobs.fraud_cases SET status = 'retracted' WHERE id = %s", (case,)
    )
    if found_by == "reward":
        assert job.process([delivery_of(user_reward)], deadline()) == [Skipped("held by a fraud case")]
    else:
        settle(database, EmailedReward(user_reward, "held", "a fraud case holds the reward"))
    with database.transaction() as connection:
        assert cases.release_unheld(connection) == 0
        assert unblock(connection) == 1
        assert cases.release_unheld(connection) == 1
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]


def test_a_hold_that_comes_after_the_load_stops_the_claim(
    database: Database,
    campaign: Campaign,
    by_webhook: uuid.UUID,
    by_email: uuid.UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from campaign_jobs.reward import store

    rewards = [campaign.earn(by_webhook), campaign.earn(by_email)]
    load = store.load

    def load_then_hold(*arguments: Any) -> Any:
        loaded = load(*arguments)
        for user_reward in rewards:
            campaign.open_case(user_reward)
        return loaded

    monkeypatch.setattr(store, "load", load_then_hold)
    client = Counting()
    outcomes = RewardJob(database, client, pool_size=2).process(
        [delivery_of(id_) for id_ in rewards], deadline()
    )
    assert all(isinstance(outcome, Later) for outcome in outcomes)
    assert client.posts == 0 and campaign.emitted() == []


def test_recording_does_not_look_at_holds(
    database: Database, campaign: Campaign, by_webhook: uuid.UUID
) -> None:
    user_reward = campaign.earn(by_webhook)

    class HoldingMeanwhile(Counting):
        def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
            campaign.open_case(user_reward)
            return super().post(url, body, headers)

    job = RewardJob(database, HoldingMeanwhile(), pool_size=1)
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]
    assert campaign.row(user_reward) == ("delivered",)


# By hand.


def test_an_operator_delivers_by_hand(job: RewardJob, database: Database, campaign: Campaign) -> None:
    user_reward = campaign.earn(campaign.add_reward("manual"))
    assert job.process([delivery_of(user_reward)], deadline()) == [
        Skipped("manual delivery waits for an operator")
    ]
    assert campaign.row(user_reward) == ("earned",)
    with database.transaction() as connection:
        deliver_manually(connection, user_reward)
    assert campaign.row(user_reward, "status, delivered_at IS NOT NULL") == ("delivered", True)
    with database.transaction() as connection, pytest.raises(NotDeliverable, match="it is delivered"):
        deliver_manually(connection, user_reward)


def test_what_an_operator_may_not_deliver_is_refused_with_the_reason(
    database: Database, campaign: Campaign, by_email: uuid.UUID
) -> None:
    manual = campaign.add_reward("manual")
    held, expired, blocked = campaign.earn(manual), campaign.earn(manual), campaign.earn(manual)
    campaign.open_case(held)
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET expires_at = now() WHERE id = %s", (expired,)
    )
    campaign.connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET status = 'blocked' WHERE id = %s",
        campaign.row(blocked, "user_id"),
    )
    for user_reward, reason in (
        (held, "a fraud case holds it"),
        (expired, "it expired"),
        (blocked, "the user is blocked"),
        (campaign.earn(by_email), "delivered by email; allowed is manual"),
        (uuid.uuid4(), "there is no user reward"),
    ):
        with database.transaction() as connection, pytest.raises(NotDeliverable, match=reason):
            deliver_manually(connection, user_reward)


# Missing rows, giving up, and the size of a batch.


def test_a_missing_user_reward_is_waited_for_and_then_rejected(database: Database) -> None:
    job = RewardJob(database, Counting(), pool_size=1, missing_row_patience=timedelta(minutes=2))
    young, older, too_old = (delivery_of(uuid.uuid4(), age=timedelta(seconds=age)) for age in (0, 30, 121))
    first, second, third = job.process([young, older, too_old], deadline())
    assert isinstance(first, Later) and isinstance(second, Later) and isinstance(third, Rejected)
    assert first.after < second.after < timedelta(minutes=2)
    job.give_up([(too_old, third.reason)])


def test_giving_up_fails_what_nobody_else_cares_for(
    job: RewardJob, campaign: Campaign, by_webhook: uuid.UUID, by_email: uuid.UUID
) -> None:
    free, claimed, crashed, parked, held, delivered = (campaign.earn(by_webhook) for _ in range(6))
    mailed = campaign.earn(by_email)
    job.process([delivery_of(mailed), delivery_of(delivered)], deadline())
    for id_, change in (
        (
            claimed,
            "status = 'delivering', claim_token = gen_random_uuid(), claimed_until = now() + interval '1 hour'",
        ),
        (crashed, "status = 'delivering', claim_token = gen_random_uuid(), claimed_until = now()"),
        (parked, "parked_event_id = 'e', parked_at = now()"),
        (held, "held_at = now()"),
    ):
        campaign.connection.execute(f"UPDATE campaign_jobs.user_rewards SET {change} WHERE id = %s", (id_,))
    everything = [free, claimed, crashed, parked, held, delivered, mailed, uuid.uuid4()]
    job.give_up([(delivery_of(id_), "the endpoint answered 500") for id_ in everything])
    assert [campaign.row(id_, "status") for id_ in everything[:-1]] == [
        ("failed",), ("delivering",), ("failed",), ("earned",), ("earned",), ("delivered",), ("delivering",),
    ]  # fmt: skip
    assert campaign.row(free, "last_error") == ("the endpoint answered 500",)


def test_what_somebody_keeps_locked_is_given_up_when_it_is_free(
    database_url: str, client: Counting, campaign: Campaign, by_webhook: uuid.UUID
) -> None:
    # Such a function's statements wait half a second for a lock.
    impatient = Database(database_url, timeout_seconds=12)
    job = RewardJob(impatient, client, pool_size=1)
    deliveries = [delivery_of(campaign.earn(by_webhook)) for _ in range(3)]
    ids = [delivery.event.data.user_reward_id for delivery in deliveries]
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT FROM campaign_jobs.user_rewards WHERE id = %s FOR UPDATE", (ids[1],))
        ((refused, refusal),) = job.give_up([(delivery, "worn out") for delivery in deliveries])
    assert refused is deliveries[1]
    assert refusal.passing
    assert [campaign.row(id_) for id_ in ids] == [("failed",), ("earned",), ("failed",)]
    assert not job.give_up([(refused, "worn out")])
    assert campaign.row(ids[1], "status, last_error") == ("failed", "worn out")
    impatient.close()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []
    execute = psycopg.Cursor.execute

    def counting(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(query)
        return execute(cursor, query, *arguments, **named)

    monkeypatch.setattr(psycopg.Cursor, "execute", counting)
    return seen


def test_statements_do_not_grow_with_the_batch_but_for_the_pool_fulls_recorded(
    job: RewardJob, campaign: Campaign, by_webhook: uuid.UUID, by_email: uuid.UUID, statements: list[object]
) -> None:
    def statements_for(mails: int, webhooks: int, holds: int) -> int:
        rewards = [campaign.earn(by_email) for _ in range(mails)] + [
            campaign.earn(by_webhook) for _ in range(webhooks)
        ]
        held = [campaign.earn(by_email) for _ in range(holds)]
        for user_reward in held:
            campaign.open_case(user_reward)
        deliveries = [delivery_of(id_) for id_ in [*rewards, *held, *(uuid.uuid4() for _ in range(mails))]]
        statements.clear()
        outcomes = job.process(deliveries, deadline())
        assert outcomes.count(Done()) == mails + webhooks
        return len(statements)

    one_of_each = statements_for(1, 1, 1)
    assert statements_for(40, 10, 20) == one_of_each
    for_one_pool_full = statements_for(0, 20, 0) - statements_for(0, 10, 0)
    assert statements_for(40, 50, 20) == one_of_each + 4 * for_one_pool_full
    assert for_one_pool_full == 3
